"""Building blocks that residual and dense networks share.

Every function takes Keras tensors of shape `(batch, height, width, channels)` and adds layers of
plain Keras, so a saved `.keras` file opens wherever Keras is installed.

Choices on which model zoos disagree, and ours:

* Padding is explicit and symmetric, as in the papers' released code and in torchvision; TensorFlow's
  "same" pads a strided 3×3 convolution on one side only. Max pooling pads with −∞ (torch's rule).
* Convolutions have no bias, because the batch norm beside them has one (1512.03385, section 3.4).
* Convolution kernels start as He normal over the fan-out, `std = sqrt(2 / (k·k·filters))`: the rule of
  1502.01852, section 2.2, in the form of the code released for all three papers. The classifier
  starts as Glorot uniform with zero bias, Keras's default.
* Batch norm decays its moving statistics by 0.9 a step (Keras's convention; 0.1 in PyTorch's) with
  epsilon 1e-5, as the papers' code does.
* Weight decay λ adds λ·w to the gradients of convolution and dense kernels only: Keras's `L2(λ / 2)`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import keras

from keras_resdense.checks import require, require_rate
from keras_resdense.networks.drop_ins import BatchNormalization, RandomNormal

Tensor = keras.KerasTensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """Choices that all layers of a network share.

    Attributes:
        batch_norm_momentum: Share of the old moving statistics kept at each step.
        batch_norm_epsilon: Added to the variance.
        weight_decay: λ; adds λ·w to the gradient of convolution and dense kernels.
        batch_norm_layer: Class of its batch norms.
        activation_layer: Class of its activations.
    """

    batch_norm_layer: ClassVar[type[keras.layers.BatchNormalization]] = BatchNormalization
    activation_layer: ClassVar[type[keras.layers.Activation]] = keras.layers.Activation

    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(self, "batch_norm_momentum", 0 <= self.batch_norm_momentum < 1, "in [0, 1)")
        require(self, "batch_norm_epsilon", self.batch_norm_epsilon > 0, "above 0")
        require(self, "weight_decay", self.weight_decay >= 0, "0 or more")


def _kernel_options(style: Style) -> dict[str, keras.Regularizer | None]:
    return {"kernel_regularizer": keras.regularizers.L2(style.weight_decay / 2) if style.weight_decay else None}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution of a block, as data.

    Attributes:
        filters: Channels it makes.
        kernel_size: Side of its square kernel.
        stride: Step of the kernel, in pixels.
        dilation: Distance between the kernel's taps, in pixels.
        groups: Groups of channels that are convolved separately (1611.05431).
        bias: Whether it adds a bias, which only the rows that follow keras.applications do.
    """

    filters: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False


def convolve(
    x: Tensor,
    convolution: Convolution,
    style: Style,
    name: str,
    *,
    zero_init: bool = False,
    kind: type[keras.layers.Conv2D] = keras.layers.Conv2D,
) -> Tensor:
    """Adds a convolution with symmetric padding.

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        convolution: What to add.
        style: Shared choices.
        name: Name of the layer.
        zero_init: Whether the kernel starts at zero.
        kind: Class of the layer.

    Returns:
        Keras tensor `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    fan_out = convolution.kernel_size**2 * convolution.filters
    he_normal = RandomNormal(stddev=math.sqrt(2 / fan_out))
    reach = convolution.dilation * (convolution.kernel_size - 1) // 2
    pad = reach > 0 and convolution.stride > 1
    if pad:
        x = keras.layers.ZeroPadding2D(reach, name=f"{name}_pad")(x)
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


def batch_norm(x: Tensor, style: Style, name: str, zero_init: bool = False) -> Tensor:
    """Adds a batch norm over the channels; with `zero_init` its scale γ starts at zero."""
    return style.batch_norm_layer(
        momentum=style.batch_norm_momentum,
        epsilon=style.batch_norm_epsilon,
        gamma_initializer="zeros" if zero_init else "ones",
        name=name,
    )(x)


def relu(x: Tensor, style: Style, name: str) -> Tensor:
    """Adds a rectified linear unit."""
    return style.activation_layer("relu", name=name)(x)


def max_pool(x: Tensor, name: str) -> Tensor:
    """Adds the stems' 3×3 max pooling of stride 2, padded by one pixel of −∞ on every side.

    Pooling at stride 1 and keeping every second pixel gives the same result for any size of input,
    without a padding layer.
    """
    x = keras.layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_window")(x)
    return subsample(x, 2, name)


def max_pool_zero_padded(x: Tensor, name: str) -> Tensor:
    """Adds the same pooling padded with zeros, as keras.applications does."""
    x = keras.layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name=name)(x)


def subsample(x: Tensor, stride: int, name: str) -> Tensor:
    """Keeps every `stride`-th pixel of every `stride`-th row."""
    return keras.layers.MaxPooling2D(1, strides=stride, name=name)(x)


def pad_channels(x: Tensor, filters: int, name: str) -> Tensor:
    """Appends channels of zeros until there are `filters` of them."""
    # With data_format="channels_first" the layer pads the last two axes, one of which is the channels here.
    missing = filters - x.shape[-1]
    return keras.layers.ZeroPadding2D(((0, 0), (0, missing)), data_format="channels_first", name=name)(x)


def drop_path(x: Tensor, rate: float, name: str) -> Tensor:
    """Adds stochastic depth (1603.09382): drops the whole branch of an image with probability `rate`."""
    return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=name)(x) if rate else x


def squeeze_excite(x: Tensor, style: Style, name: str) -> Tensor:
    """Adds a squeeze-and-excitation gate (1709.01507, section 3) of ratio 1/16.

    The narrow layer's width is rounded to a multiple of 8, at least 8, as timm does.
    """
    channels = x.shape[-1]
    narrow = max(8, (channels // 16 + 4) // 8 * 8)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    gate = relu(convolve(gate, Convolution(narrow, 1, bias=True), style, f"{name}_reduce"), style, f"{name}_relu")
    gate = convolve(gate, Convolution(channels, 1, bias=True), style, f"{name}_expand")
    gate = keras.layers.Activation("sigmoid", name=f"{name}_gate")(gate)
    return keras.layers.Multiply(name=f"{name}_scale")([x, gate])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stem:
    """The layers before the first stage, and the images they were designed for.

    Attributes:
        convolutions: Share of the stem's filters, kernel size and stride of each convolution.
        pool: Adds the pooling of stride 2; None for no pooling.
        bias: Whether its convolutions add a bias.
        image_size: Side of the images the papers trained on, in pixels.
        smallest_size: Smallest allowed side of an input, in pixels.
        classes: Classes of the data set the papers trained on.
    """

    convolutions: tuple[tuple[float, int, int], ...]
    pool: Callable[[Tensor, str], Tensor] | None = max_pool
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
#: 1812.01187, figure 2 (C), with half, half and all of the filters, as in fb.resnet.torch's and timm's "D".
DEEP_STEM = Stem(convolutions=((0.5, 3, 2), (0.5, 3, 1), (1, 3, 1)))
#: 1512.03385, section 4.2.
CIFAR_STEM = Stem(convolutions=((1, 3, 1),), pool=None, image_size=32, smallest_size=8, classes=10)


def add_stem(x: Tensor, stem: Stem, filters: int, style: Style, after: tuple[str, ...], name: str) -> Tensor:
    """Adds a stem.

    Args:
        x: Images `(batch, height, width, channels)`.
        stem: Which stem.
        filters: Channels of its output.
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


def apply_steps(
    x: Tensor, steps: tuple[str, ...], style: Style, name: str, index: int | str, zero_init: bool = False
) -> Tensor:
    """Adds a sequence of steps, each "bn" (batch norm) or "relu".

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        steps: Names of the steps, in order.
        style: Shared choices.
        name: Start of the layers' names, which are `{name}_{step}{index}`.
        index: End of the layers' names.
        zero_init: Whether the scale γ of the batch norm starts at zero.

    Returns:
        Keras tensor of the same shape.
    """
    for step in steps:
        layer_name = f"{name}_{step}{index}"
        x = relu(x, style, layer_name) if step == "relu" else batch_norm(x, style, layer_name, zero_init)
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Style):
    """The fields of every row of the zoo. A family adds its own fields and its `body`.

    Attributes:
        depths: Blocks (ResNet) or layers (DenseNet) of each stage.
        stem: Layers before the first stage.
        head_dropout: Share of the pooled features that training drops before the classifier.
        output_stride: Pixels of the image per pixel of the last feature map. Stages that would exceed it
            keep their size and dilate their 3×3 convolutions. None for the published stride.
    """

    depths: tuple[int, ...]
    stem: Stem = IMAGENET_STEM
    head_dropout: float = 0.0
    output_stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = bool(self.depths) and all(isinstance(depth, int) and depth > 0 for depth in self.depths)
        require(self, "depths", whole, "a tuple of whole numbers of at least 1, one a stage")
        require_rate(self, "head_dropout")
        strides = [self.stem.stride * 2**stage for stage in range(len(self.depths))]
        require(self, "output_stride", self.output_stride in (None, *strides), f"None or one of {strides}")

    def stage_steps(self) -> list[tuple[int, int, int]]:
        """Returns each stage's stride, its dilation, and the dilation of the stage before it."""
        steps = [(1, 1, 1)]
        reached, dilation = self.stem.stride, 1
        for _ in self.depths[1:]:
            before = dilation
            stride = 1 if reached == self.output_stride else 2
            reached, dilation = (reached, dilation * 2) if stride == 1 else (reached * 2, dilation)
            steps.append((stride, dilation, before))
        return steps

    def body(self, x: Tensor, prefix: str) -> Tensor:
        """Adds everything between the images and the head.

        Args:
            x: Images `(batch, height, width, channels)`.
            prefix: Put before the name of every layer.

        Returns:
            Keras tensor, the last feature map.
        """
        raise NotImplementedError


def add_head(x: Tensor, classes: int, activation: str | Callable | None, row: Network, prefix: str) -> Tensor:
    """Adds global average pooling and the classifier.

    Under mixed precision the classifier computes in the precision of its weights.

    Args:
        x: Feature map `(batch, height, width, channels)`.
        classes: Outputs.
        activation: Activation of the outputs, as `keras.activations.get` takes it.
        row: Row of the zoo, for its style.
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
