"""Layers that round like LiteRT's integer kernels and can be trained.

Gradients pass through the rounding unchanged. They are zero for values outside the range.
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
            low, high = self.limits()
            return keras.ops.convert_to_tensor((high - low) / 255, dtype="float32")
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

    The step of the bias is that of the inputs times that of the kernel, as in LiteRT's integer kernels.

    Args of a call:
        inputs: The inputs, in steps of the size `step`.
        step: Size of a step of the inputs.
        output_step: Size of a step of the outputs. With 4-bit weights, they are rounded to fractions of it.

    Attributes:
        weight_bits: Bits of a weight.
    """

    weight_bits: int = 8

    def call(self, inputs: Any, step: Any, output_step: Any) -> Any:
        kernel, *bias = self.rounded(step)
        outputs = self.multiply(*(keras.ops.cast(value, self.compute_dtype) for value in (inputs, kernel)))
        outputs = keras.ops.add(outputs, *bias) if bias else outputs
        if self.weight_bits == 8:
            return outputs
        exact = keras.ops.cast(outputs, "float32")
        rounded = rounded_to_fraction(exact, fraction_of_step(step * self.kernel_steps(), output_step))
        return exact + keras.ops.stop_gradient(rounded - exact)

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        """Computes the layer without its bias."""
        raise NotImplementedError

    def rounded(self, step: Any) -> list[Any]:
        """Returns the kernel and, if there is one, the bias, rounded for inputs with steps of size `step`."""
        kernel, *bias = [keras.ops.convert_to_tensor(weight) for weight in self.weights]
        flat, steps = keras.ops.reshape(kernel, (-1, self._output_channels(kernel.shape))), self.kernel_steps()
        return [
            kernel + keras.ops.stop_gradient(keras.ops.reshape(_rounded(flat, steps), kernel.shape) - kernel),
            *(shift + keras.ops.stop_gradient(_rounded(shift, step * steps) - shift) for shift in bias),
        ]

    def kernel_steps(self) -> Any:
        """Returns the size of a step of the kernel for each output channel, `(channels,)`."""
        kernel = keras.ops.convert_to_tensor(self.weights[0])
        most = keras.ops.max(
            keras.ops.abs(keras.ops.reshape(kernel, (-1, self._output_channels(kernel.shape)))), axis=0
        )
        # A channel of zeros also needs a step.
        return keras.ops.maximum(most, 1e-30) / (2 ** (self.weight_bits - 1) - 1)

    def _output_channels(self, shape: tuple[int, ...]) -> int:
        return shape[-1]

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


def fraction_of_step(steps: Any, output_step: Any) -> Any:
    """Returns what LiteRT rounds the outputs of a convolution with 4-bit weights to, before it rounds them to steps.

    XNNPACK has no kernel for such a convolution. LiteRT's own kernel multiplies its sums by a number from 0.5 to 1,
    rounds, and shifts bits away, which rounds again (1712.05877, section 2.2; `MultiplyByQuantizedMultiplier`). So 0.45
    of a step becomes 0.5 and then 1.

    Args:
        steps: Size of a step of the sums for each channel, `(channels,)`.
        output_step: Size of a step of the outputs.
    """
    exponents = keras.ops.floor(keras.ops.log2(steps / output_step)) + 1
    return output_step * 2.0 ** keras.ops.minimum(exponents, 0.0)


def rounded_to_fraction(outputs: Any, fraction: Any) -> Any:
    """Returns values a little above multiples of the fraction, because the second rounding takes halves up."""
    return (keras.ops.round(outputs / fraction) + 0.25) * fraction


def _rounded(values: Any, steps: Any) -> Any:
    return keras.ops.round(values / steps) * steps


@_register
class RoundedConv2D(RoundedKernel, keras.layers.Conv2D):
    """Keras's convolution with a rounded kernel."""

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return self.convolution_op(inputs, kernel)


@_register
class RoundedDepthwiseConv2D(RoundedKernel, keras.layers.DepthwiseConv2D):
    """Keras's depthwise convolution with a rounded kernel."""

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return keras.ops.depthwise_conv(
            inputs, kernel, strides=self.strides, padding=self.padding, dilation_rate=self.dilation_rate
        )

    def _output_channels(self, shape: tuple[int, ...]) -> int:
        return shape[-2] * shape[-1]


@_register
class RoundedDense(RoundedKernel, keras.layers.Dense):
    """Keras's dense layer with a rounded kernel."""

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return keras.ops.matmul(inputs, kernel)
