"""Layers that round like LiteRT's integer kernels and can be trained.

Gradients pass through the rounding unchanged. They are zero for values outside the range. The sizes of steps are those
of a file: computed in float64 and kept in float32.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_resdense.networks.drop_ins import averaged_over_replicas

#: Momentum of the moving averages of ranges.
MOMENTUM = 0.99
#: Ranges that LiteRT's kernels fix: of pixels, and of outputs between 0 and 1 (softmax, sigmoid).
PIXELS, SHARES = (0.0, 255.0), (0.0, 255 / 256)

_register = keras.saving.register_keras_serializable("keras_resdense")


@_register
class FakeQuantise(keras.layers.Layer):
    """Rounds values to 256 steps between a smallest and a largest value. Zero is one of the steps.

    Args:
        parts: Number of tensors that share the steps. Each is rounded by its own call. A call with `step=True` returns
            the size of a step.
        span: Fixed smallest and largest value, with rounding at inference only. None to follow the values.
        name: Name of the layer.
        trainable: Whether the range follows the values in training.
        dtype: Precision of the outputs.
    """

    def __init__(
        self,
        parts: int = 1,
        span: tuple[float, float] | None = None,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = "float32",
    ):
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.parts: int = parts
        self.span: tuple[float, float] | None = None if span is None else tuple(span)

    def build(self, input_shape: Any) -> None:
        if self.span is None:
            with averaged_over_replicas():
                self.ranges = [
                    self.add_weight(shape=(2,), initializer="zeros", trainable=False, name=f"range{part}")
                    for part in range(self.parts)
                ]

    def call(self, inputs: Any, part: int = 0, step: bool = False, training: bool | None = None) -> Any:
        if step:
            low, high = (keras.ops.cast(limit, "float64") for limit in self.limits())
            return keras.ops.cast((high - low) / 255, "float32")
        if self.span is not None and training:
            return inputs
        if self.span is None and training and self.trainable:
            seen = keras.ops.stack([keras.ops.min(inputs), keras.ops.max(inputs)])
            self.ranges[part].assign(MOMENTUM * self.ranges[part] + (1 - MOMENTUM) * keras.ops.stop_gradient(seen))
        return keras.quantizers.fake_quant_with_min_max_vars(inputs, *self.limits())

    def limits(self) -> tuple[Any, Any]:
        """Returns the smallest and the largest value of all parts and 0."""
        if self.span is not None:
            return self.span
        ranges = keras.ops.stack([*(limits.value for limits in self.ranges), keras.ops.zeros(2)])
        return keras.ops.min(ranges[:, 0]), keras.ops.max(ranges[:, 1])

    def start(self, ranges: np.ndarray) -> None:
        """Sets the ranges of all parts, `(parts, 2)`, unless they are fixed."""
        for variable, limits in zip(self.ranges if self.span is None else (), ranges, strict=self.span is None):
            variable.assign(limits)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"parts": self.parts, "span": self.span}


class RoundedKernel:
    """A layer with a kernel that is rounded symmetrically around 0, with one step per output channel.

    It computes in whole numbers, like LiteRT's kernels: inputs, kernel and bias are numbers of steps. The step of the
    bias is that of the inputs times that of the kernel.

    Args of a call:
        inputs: The inputs.
        step: Size of a step of the inputs.
        output_step: Size of a step of the outputs.

    Attributes:
        weight_bits: Bits of a weight.
        channel_axes: Number of the kernel's last axes whose product is the number of output channels.
    """

    weight_bits: int = 8
    channel_axes: int = 1

    def call(self, inputs: Any, step: Any, output_step: Any) -> Any:
        kernel, *bias = self.levels(step)
        numbers = (keras.ops.cast(value, self.compute_dtype) for value in (rounded(inputs / step), kernel))
        sums = keras.ops.cast(self.multiply(*numbers), "float32")
        sums = keras.ops.add(sums, *bias) if bias else sums
        outputs = sums * (self.sum_steps(step) / output_step)
        if self.weight_bits < 8:
            # LiteRT's factors have 31 bits, too many for float32.
            values = (sums, self.sum_steps(1.0), step, output_step)
            exact, kernel_steps, step, target = (keras.ops.cast(value, "float64") for value in values)
            ratio = kernel_steps * step / target
            twice = keras.ops.cast(rounded_to_fraction(exact * ratio, fraction_of_step(ratio)), "float32")
            outputs = outputs + keras.ops.stop_gradient(twice - outputs)
        return rounded(outputs) * output_step

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        """Computes the layer without its bias."""
        raise NotImplementedError

    def levels(self, step: Any) -> list[Any]:
        """Returns the kernel and, if there is one, the bias in steps, for inputs with steps of that size."""
        kernel, *bias = [keras.ops.convert_to_tensor(weight) for weight in self.weights]
        steps = keras.ops.cast(self.kernel_steps(), "float32")
        return [rounded(kernel / steps), *(rounded(shift / self.sum_steps(step)) for shift in bias)]

    def values(self, step: Any) -> list[Any]:
        """Returns the rounded kernel and, if there is one, the rounded bias."""
        kernel, *bias = self.levels(step)
        values = keras.ops.cast(keras.ops.cast(kernel, "float64") * self.kernel_steps(), "float32")
        return [values, *(shift * self.sum_steps(step) for shift in bias)]

    def kernel_steps(self) -> Any:
        """Returns the size of a step of the kernel for each output channel, float64, in the shape of the last axes."""
        kernel = keras.ops.stop_gradient(keras.ops.convert_to_tensor(self.weights[0]))
        most = keras.ops.max(keras.ops.abs(kernel), axis=tuple(range(len(kernel.shape) - self.channel_axes)))
        # A channel of zeros also needs a step.
        return keras.ops.cast(keras.ops.maximum(most, 1e-30), "float64") / (2 ** (self.weight_bits - 1) - 1)

    def sum_steps(self, step: Any) -> Any:
        """Returns the size of a step of the sums, `(channels,)`, for inputs with steps of that size."""
        return step * keras.ops.cast(keras.ops.reshape(self.kernel_steps(), (-1,)), "float32")

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"weight_bits": self.weight_bits}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.Layer:
        config = dict(config)
        bits = config.pop("weight_bits", cls.weight_bits)
        layer = super().from_config(config)
        # In mixed precision, weights are rounded in float32 and then cast.
        layer.weight_bits, layer.autocast = bits, False
        return layer


def fraction_of_step(ratio: Any) -> Any:
    """Returns the fraction of a step to which LiteRT rounds the outputs of a convolution with 4-bit weights first.

    XNNPACK has no kernel for such a convolution. LiteRT's own kernel multiplies its sums by a number from 0.5 to 1,
    rounds, and shifts bits away, which rounds again (1712.05877, section 2.2; `MultiplyByQuantizedMultiplier`). So 0.45
    of a step becomes 0.5 and then 1.

    Args:
        ratio: Size of a step of the sums over that of the outputs, for each channel, `(channels,)`.
    """
    exponents = keras.ops.floor(keras.ops.log2(ratio)) + 1
    return 2.0 ** keras.ops.minimum(exponents, 0.0)


def rounded_to_fraction(outputs: Any, fraction: Any) -> Any:
    """Returns values a little above multiples of the fraction, because the second rounding takes halves up."""
    return (keras.ops.round(outputs / fraction) + 0.25) * fraction


def rounded(values: Any) -> Any:
    """Rounds values to whole numbers, and halves to even ones. Gradients pass through."""
    return values + keras.ops.stop_gradient(keras.ops.round(values) - values)


@_register
class RoundedAdd(keras.layers.Layer):
    """Adds two tensors as XNNPACK adds integers: with factors of 21 bits, and halves rounded up.

    Args of a call:
        inputs: Two tensors.
        step: Sizes of their steps.
        output_step: Size of a step of the outputs.
    """

    def call(self, inputs: Any, step: Any, output_step: Any) -> Any:
        ratios = [one / output_step for one in step]
        shift = 2.0 ** (20 - keras.ops.floor(keras.ops.log2(keras.ops.maximum(*ratios))))
        # Products of 8 and 21 bits are not exact in float32.
        total = sum(
            keras.ops.cast(keras.ops.round(part / one), "float64")
            * keras.ops.cast(keras.ops.round(ratio * shift), "float64")
            for part, one, ratio in zip(inputs, step, ratios, strict=True)
        )
        whole = keras.ops.cast(keras.ops.floor(total / keras.ops.cast(shift, "float64") + 0.5), "float32")
        outputs = keras.ops.add(*inputs)
        return outputs + keras.ops.stop_gradient(whole * output_step - outputs)


@_register
class RoundedMultiply(keras.layers.Layer):
    """Multiplies two tensors as XNNPACK multiplies integers. Its calls take what those of `RoundedAdd` do."""

    def call(self, inputs: Any, step: Any, output_step: Any) -> Any:
        product = keras.ops.multiply(*(rounded(part / one) for part, one in zip(inputs, step, strict=True)))
        return rounded(product * (step[0] * step[1] / output_step)) * output_step


@_register
class RoundedConv2D(RoundedKernel, keras.layers.Conv2D):
    """Keras's convolution with a rounded kernel."""

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return self.convolution_op(inputs, kernel)


@_register
class RoundedDepthwiseConv2D(RoundedKernel, keras.layers.DepthwiseConv2D):
    """Keras's depthwise convolution with a rounded kernel."""

    channel_axes: int = 2

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return keras.ops.depthwise_conv(
            inputs, kernel, strides=self.strides, padding=self.padding, dilation_rate=self.dilation_rate
        )


@_register
class RoundedDense(RoundedKernel, keras.layers.Dense):
    """Keras's dense layer with a rounded kernel."""

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return keras.ops.matmul(inputs, kernel)
