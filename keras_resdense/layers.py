"""The ground floor: what residual and dense networks are both made of.

Everything here takes Keras tensors of shape `(batch, height, width, channels)` and adds layers of
plain Keras, so a saved `.keras` file opens wherever Keras is.

Choices on which model zoos disagree, and ours:

* Padding is explicit and symmetric, as in the papers' released code and in torchvision; TensorFlow's
  "same" pads a strided 3×3 convolution on one side only. Max pooling pads with −∞ (torch's rule).
* Convolutions carry no bias: the batch norm beside them has one (1512.03385, section 3.4).
* Convolution kernels start as He normal over the fan-out, `std = sqrt(2 / (k·k·filters))`: the rule of
  1502.01852, section 2.2, in the form of the code released for all three papers. The classifier
  starts as Glorot uniform with zero bias, Keras's default.
* Batch norm decays its moving statistics by 0.9 a step (Keras's convention; 0.1 in PyTorch's) with
  epsilon 1e-5, as the papers' code does.
* Weight decay λ adds λ·w to the gradient of convolution and dense kernels, and of nothing else:
  Keras's `L2(λ / 2)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterator

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    from keras_resdense import kernels
else:
    kernels = None


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm on TensorFlow's fused kernels.

    Same arguments, weights and numbers as `keras.layers.BatchNormalization`, in training and in
    inference, in float32 and in mixed precision. Keras's own code runs wherever the kernels do not
    apply: another backend, another rank or axis than `(batch, height, width, channels)`, masks,
    synchronised statistics, renormalisation, float64.

    Under a `tf.distribute` strategy, replicas keep one moving average of batch statistics, the mean of all. Each
    would otherwise keep its own, and only that of the first would be evaluated and saved.

    A saved model names Keras's class, so it opens without this package.
    """

    def build(self, input_shape):
        with _averaged_over_replicas():
            super().build(input_shape)

    def call(self, inputs, training=None, mask=None):
        if mask is not None or not self._fits_fused_kernel(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        channels = inputs.shape[-1]
        inputs = tf.cast(inputs, self.compute_dtype)
        scale = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones([channels])
        offset = tf.convert_to_tensor(self.beta) if self.center else tf.zeros([channels])
        if not (training and self.trainable):
            moments = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
            return kernels.scale_and_shift(inputs, scale, offset, *moments, self.epsilon)
        outputs, mean, variance = kernels.batch_normalise(inputs, scale, offset, self.epsilon)
        self.moving_mean.assign(_decayed(self.moving_mean, mean, self.momentum))
        self.moving_variance.assign(_decayed(self.moving_variance, variance, self.momentum))
        return outputs

    def _fits_fused_kernel(self, inputs) -> bool:
        return (
            kernels is not None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and not self.synchronized
            and not getattr(self, "renorm", False)  # Older versions of Keras lack it.
            and self.variable_dtype == "float32"
            and self.compute_dtype in ("float32", "bfloat16", "float16")
        )


class Concatenate(keras.layers.Concatenate):
    """Keras's concatenation of channels, after which batch norms need not compute their parts' statistics anew."""

    def call(self, inputs):
        outputs = super().call(inputs)
        if kernels:
            kernels.remember_parts(outputs, inputs)
        return outputs


class Activation(keras.layers.Activation):
    """Keras's activation, behind which a convolution still knows what was normalised."""

    def call(self, inputs):
        outputs = super().call(inputs)
        if kernels:
            kernels.remember_rectified(inputs, outputs)
        return outputs


class RecomputingConv2D(keras.layers.Conv2D):
    """Keras's convolution, without bias, that computes again for its gradient what it read in a dense block."""

    def call(self, inputs):
        if not kernels:
            return super().call(inputs)
        kernel = keras.ops.cast(self.kernel, self.compute_dtype)
        return kernels.convolve_recomputing(inputs, kernel, self.convolution_op)


class RandomNormal(keras.initializers.RandomNormal):
    """Keras's initializer, a third of its time on a CPU: draws among 65,536 quantiles of the distribution."""

    def __call__(self, shape, dtype=None):
        draws = np.random.default_rng(self.seed).integers(0, _QUANTILES, size=shape, dtype=np.uint16)
        values = np.take(self.mean + self.stddev * _normal_quantiles(), draws)
        return keras.ops.convert_to_tensor(values, dtype=dtype or keras.config.floatx())


_QUANTILES = 2**16


@functools.cache
def _normal_quantiles() -> np.ndarray:
    inverse = statistics.NormalDist().inv_cdf
    upper = np.array([inverse((index + 0.5) / _QUANTILES) for index in range(_QUANTILES // 2, _QUANTILES)], "float32")
    return np.concatenate([-upper[::-1], upper])


# Keras writes module and class name into a saved model: these make it name Keras's own classes.
Activation.__module__ = BatchNormalization.__module__ = Concatenate.__module__ = "keras.layers"
RecomputingConv2D.__module__ = "keras.layers"
RecomputingConv2D.__name__ = "Conv2D"
RandomNormal.__module__ = "keras.initializers"


@contextlib.contextmanager
def _averaged_over_replicas() -> Iterator[None]:
    """Lets replicas hold the mean of what each of them assigns to the variables made here that are not trained."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    def averaged(options: dict) -> dict:
        return options if options["trainable"] else options | {"aggregation": tf.VariableAggregation.MEAN}

    with tf.variable_creator_scope(lambda create, **options: create(**averaged(options))):
        yield


def _decayed(average, value, momentum: float):
    return average * momentum + value * (1.0 - momentum)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """What every layer of a network shares.

    Attributes:
        batch_norm_momentum: Share of the old moving statistics kept at each step.
        batch_norm_epsilon: Added to the variance.
        weight_decay: λ; adds λ·w to the gradient of convolution and dense kernels.
    """

    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    weight_decay: float = 0.0

    def __post_init__(self):
        require(self, "batch_norm_momentum", 0 <= self.batch_norm_momentum < 1, "in [0, 1)")
        require(self, "batch_norm_epsilon", self.batch_norm_epsilon > 0, "above 0")
        require(self, "weight_decay", self.weight_decay >= 0, "0 or more")


def require(row, field: str, holds: bool, allowed: str) -> None:
    """Raises a ValueError that names the field, what it got and what is allowed, unless `holds`."""
    if not holds:
        raise ValueError(f"{type(row).__name__}.{field} is {getattr(row, field)!r}; it must be {allowed}.")


def require_whole(row, field: str, least: int = 1) -> None:
    """Raises a ValueError unless the field is a whole number of at least `least`."""
    value = getattr(row, field)
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(row, field, whole and value >= least, f"a whole number of at least {least}")


def require_rate(row, field: str) -> None:
    """Raises a ValueError unless the field is a share in [0, 1)."""
    require(row, field, 0 <= getattr(row, field) < 1, "in [0, 1)")


def _kernel_options(style: Style) -> dict:
    return {"kernel_regularizer": keras.regularizers.L2(style.weight_decay / 2) if style.weight_decay else None}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution of a block, as data.

    Attributes:
        filters: Channels it makes.
        kernel_size: Side of its square kernel.
        stride: Step of the kernel, in pixels.
        dilation: Distance between the kernel's taps, in pixels.
        groups: Groups of channels convolved apart (1611.05431).
        bias: Whether it adds a bias, which only keras.applications' dialects do.
        recompute: Whether it saves memory in training by computing its inputs twice.
    """

    filters: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    recompute: bool = False


def convolve(x, convolution: Convolution, style: Style, name: str, zero_init: bool = False):
    """Adds a convolution with symmetric padding.

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        convolution: What to add.
        style: Shared choices.
        name: Name of the layer.
        zero_init: Whether the kernel starts at zero.

    Returns:
        Keras tensor `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    fan_out = convolution.kernel_size**2 * convolution.filters
    he_normal = RandomNormal(stddev=math.sqrt(2 / fan_out))
    reach = convolution.dilation * (convolution.kernel_size - 1) // 2
    pad = reach > 0 and convolution.stride > 1
    if pad:
        x = keras.layers.ZeroPadding2D(reach, name=f"{name}_pad")(x)
    kind = RecomputingConv2D if convolution.recompute else keras.layers.Conv2D
    return kind(
        convolution.filters,
        convolution.kernel_size,
        strides=convolution.stride,
        padding="valid" if pad else "same",
        dilation_rate=convolution.dilation,
        groups=convolution.groups,
        use_bias=convolution.bias,
        kernel_initializer="zeros" if zero_init else he_normal,
        name=name,
        **_kernel_options(style),
    )(x)


def batch_norm(x, style: Style, name: str, zero_init: bool = False):
    """Adds a batch norm over the channels; its scale γ starts at zero where `zero_init`."""
    return BatchNormalization(
        momentum=style.batch_norm_momentum,
        epsilon=style.batch_norm_epsilon,
        gamma_initializer="zeros" if zero_init else "ones",
        name=name,
    )(x)


def relu(x, name: str):
    """Adds a rectified linear unit."""
    return Activation("relu", name=name)(x)


def max_pool(x, name: str):
    """Adds the stems' 3×3 max pooling of stride 2, padded by one pixel of −∞ on every side.

    Pooling at stride 1 and keeping every second pixel is that very pooling, for any size of input,
    and needs no padding layer.
    """
    x = keras.layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_window")(x)
    return subsample(x, 2, name)


def max_pool_zero_padded(x, name: str):
    """Adds the same pooling padded by zeros: the dialect of keras.applications."""
    x = keras.layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name=name)(x)


def subsample(x, stride: int, name: str):
    """Keeps every `stride`-th pixel of every `stride`-th row."""
    return keras.layers.MaxPooling2D(1, strides=stride, name=name)(x)


def pad_channels(x, filters: int, name: str):
    """Appends channels of zeros until there are `filters` of them."""
    # A layer told that channels come first pads the last two axes, so that the channels are among them.
    missing = filters - x.shape[-1]
    return keras.layers.ZeroPadding2D(((0, 0), (0, missing)), data_format="channels_first", name=name)(x)


def drop_path(x, rate: float, name: str):
    """Adds stochastic depth (1603.09382): drops the whole branch of an image with probability `rate`."""
    return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=name)(x) if rate else x


def squeeze_excite(x, style: Style, name: str):
    """Adds a squeeze-and-excitation gate (1709.01507, section 3) of ratio 1/16.

    The narrow layer's width is rounded to a multiple of 8, at least 8, as timm does.
    """
    channels = x.shape[-1]
    narrow = max(8, (channels // 16 + 4) // 8 * 8)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    gate = relu(convolve(gate, Convolution(narrow, 1, bias=True), style, f"{name}_reduce"), f"{name}_relu")
    gate = convolve(gate, Convolution(channels, 1, bias=True), style, f"{name}_expand")
    gate = keras.layers.Activation("sigmoid", name=f"{name}_gate")(gate)
    return keras.layers.Multiply(name=f"{name}_scale")([x, gate])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stem:
    """What stands before the first stage, and the images it was made for.

    Attributes:
        convolutions: Of each convolution: its share of the stem's filters, kernel size, stride.
        pool: Adds the pooling of stride 2; None where there is none.
        bias: Whether its convolutions add a bias.
        image_size: Side of the images the papers trained on, in pixels.
        smallest_size: Least side of an input, in pixels.
        classes: Classes of the data set the papers trained on.
    """

    convolutions: tuple[tuple[float, int, int], ...]
    pool: Callable | None = max_pool
    bias: bool = False
    image_size: int = 224
    smallest_size: int = 32
    classes: int = 1000

    @property
    def stride(self) -> int:
        """Pixels of the image per pixel of the stem's output."""
        return math.prod(stride for _, _, stride in self.convolutions) * (2 if self.pool else 1)


#: 1512.03385, table 1: conv1 and the pooling that opens conv2_x.
IMAGENET_STEM = Stem(convolutions=((1, 7, 2),))
#: 1812.01187, figure 2 (C): a half, a half and all of the filters, as in fb.resnet.torch's and timm's "D".
DEEP_STEM = Stem(convolutions=((0.5, 3, 2), (0.5, 3, 1), (1, 3, 1)))
#: 1512.03385, section 4.2.
CIFAR_STEM = Stem(convolutions=((1, 3, 1),), pool=None, image_size=32, smallest_size=8, classes=10)


def add_stem(x, stem: Stem, filters: int, style: Style, after: tuple[str, ...], name: str):
    """Adds a stem.

    Args:
        x: Images `(batch, height, width, channels)`.
        stem: Which one.
        filters: Channels it makes.
        style: Shared choices.
        after: Steps after its last convolution, as `apply_steps` takes them.
        name: Start of the names of its layers.

    Returns:
        Keras tensor `(batch, ceil(height / stem.stride), ceil(width / stem.stride), filters)`.
    """
    last = len(stem.convolutions)
    for index, (share, kernel_size, stride) in enumerate(stem.convolutions, start=1):
        convolution = Convolution(int(filters * share), kernel_size, stride, bias=stem.bias)
        x = convolve(x, convolution, style, f"{name}_conv{index}")
        x = apply_steps(x, ("bn", "relu") if index < last else after, style, name, index)
    return stem.pool(x, f"{name}_pool") if stem.pool else x


def apply_steps(x, steps: tuple[str, ...], style: Style, name: str, index: int | str, zero_init: bool = False):
    """Adds a sequence of steps, each "bn" (batch norm) or "relu".

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        steps: Which, in order.
        style: Shared choices.
        name: Start of the layers' names, which are `{name}_{step}{index}`.
        index: End of the layers' names.
        zero_init: Whether the scale γ of the batch norm starts at zero.

    Returns:
        Keras tensor of the same shape.
    """
    for step in steps:
        layer_name = f"{name}_{step}{index}"
        x = relu(x, layer_name) if step == "relu" else batch_norm(x, style, layer_name, zero_init)
    return x


def nest(add: Callable, x, name: str):
    """Adds layers as one, a model in the model, and behind it `{name}_out`, whose output is the outer model's.

    Args:
        add: Takes a Keras tensor and returns one.
        x: What it is to take.
        name: Of the inner model.

    Returns:
        Keras tensor like the one that `add` returns.
    """
    inputs = keras.Input(batch_shape=x.shape, name=f"{name}_input")
    return keras.layers.Identity(name=f"{name}_out")(keras.Model(inputs, add(inputs), name=name)(x))


def all_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """Yields a model's layers, and in the place of those that are models themselves the layers of these."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Style):
    """What every row of the zoo has; a family adds its own fields and its `body`.

    Attributes:
        depths: Blocks (ResNet) or layers (DenseNet) of each stage.
        stem: What stands before the first stage.
        head_dropout: Share of the pooled features dropped in training before the classifier.
        output_stride: Pixels of the image per pixel of the last feature map; stages that would go
            beyond it keep their size and dilate their 3×3 convolutions. None: as published.
    """

    depths: tuple[int, ...]
    stem: Stem = IMAGENET_STEM
    head_dropout: float = 0.0
    output_stride: int | None = None

    def __post_init__(self):
        super().__post_init__()
        whole = bool(self.depths) and all(isinstance(depth, int) and depth > 0 for depth in self.depths)
        require(self, "depths", whole, "a tuple of whole numbers of at least 1, one a stage")
        require_rate(self, "head_dropout")
        strides = [self.stem.stride * 2**stage for stage in range(len(self.depths))]
        require(self, "output_stride", self.output_stride in (None, *strides), f"None or one of {strides}")

    def stage_steps(self) -> list[tuple[int, int, int]]:
        """Of each stage: its stride, its dilation, and the dilation of the stage before it."""
        steps = [(1, 1, 1)]
        reached, dilation = self.stem.stride, 1
        for _ in self.depths[1:]:
            before = dilation
            stride = 1 if reached == self.output_stride else 2
            reached, dilation = (reached, dilation * 2) if stride == 1 else (reached * 2, dilation)
            steps.append((stride, dilation, before))
        return steps

    def body(self, x, prefix: str):
        """Adds everything between the images and the head.

        Args:
            x: Images `(batch, height, width, channels)`.
            prefix: Put before the name of every layer.

        Returns:
            Keras tensor, the last feature map.
        """
        raise NotImplementedError


def add_head(x, classes: int, activation, row: Network, prefix: str):
    """Adds global average pooling and the classifier.

    Under mixed precision the classifier computes in the precision of its weights.

    Args:
        x: Feature map `(batch, height, width, channels)`.
        classes: Outputs.
        activation: Of the outputs, as `keras.activations.get` takes it.
        row: Whose style.
        prefix: Put before the names of the layers.

    Returns:
        Keras tensor `(batch, classes)`.
    """
    x = keras.layers.GlobalAveragePooling2D(name=f"{prefix}avg_pool")(x)
    if row.head_dropout:
        x = keras.layers.Dropout(row.head_dropout, name=f"{prefix}dropout")(x)
    return keras.layers.Dense(
        classes,
        activation=activation,
        dtype=keras.config.dtype_policy().variable_dtype,
        name=f"{prefix}predictions",
        **_kernel_options(row),
    )(x)
