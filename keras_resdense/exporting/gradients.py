"""Layers whose gradients consist of LiteRT's built-in operations.

TensorFlow computes the gradients of convolutions, ReLU and sigmoid with operations that `.tflite` lacks, so they are
computed with others here. The gradient of a convolution's kernel, for example, is itself a convolution: of the inputs
with the gradients of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def differentiable(layer: Any) -> Callable | None:
    """Returns a function that computes a layer from its weights and inputs; None for a layer that is not supported."""
    if isinstance(layer, keras.layers.Conv2D):
        known = layer.data_format == "channels_last" and set(layer.dilation_rate) == {1}
        return _convolution(layer) if known else None
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        # Batch norms that cannot be folded become such layers.
        known = layer.kernel_size == layer.strides == (1, 1) and layer.depth_multiplier == 1
        return _activated(layer, _scale) if known else None
    if isinstance(layer, keras.layers.Dense):
        return _activated(layer, multiply)
    if isinstance(layer, keras.layers.Activation):
        return _activated(layer, lambda weights, inputs: inputs)
    return (lambda weights, *args: layer(*args)) if isinstance(layer, _PLAIN) else None


#: Layers whose gradients TensorFlow computes with built-in operations.
_PLAIN = (
    *(keras.layers.Add, keras.layers.Multiply, keras.layers.Concatenate, keras.layers.ZeroPadding2D),
    *(keras.layers.GlobalAveragePooling2D, keras.layers.Flatten, keras.layers.Reshape, keras.layers.Identity),
)


def _activated(layer: Any, compute: Callable) -> Callable | None:
    activation = _ACTIVATIONS.get(layer.activation)
    return activation and (lambda weights, inputs: activation(compute(weights, inputs)))


def multiply(weights: list[Any], inputs: Any) -> Any:
    """Computes a dense layer without its activation, from its kernel and, if it has one, its bias."""
    kernel, *bias = weights
    return sum(bias, inputs @ kernel)


def _scale(weights: list[Any], inputs: Any) -> Any:
    kernel, *bias = weights
    return sum(bias, inputs * kernel[0, 0, :, 0])


def _relu(inputs: Any) -> Any:
    import tensorflow as tf

    @tf.custom_gradient
    def compute(values):
        outputs = tf.nn.relu(values)
        return outputs, lambda upstream: upstream * tf.cast(outputs > 0, outputs.dtype)

    return compute(inputs)


def _sigmoid(inputs: Any) -> Any:
    import tensorflow as tf

    @tf.custom_gradient
    def compute(values):
        outputs = tf.sigmoid(values)
        return outputs, lambda upstream: upstream * outputs * (1 - outputs)

    return compute(inputs)


_ACTIVATIONS: dict[Any, Callable] = {
    keras.activations.linear: lambda values: values,
    keras.activations.relu: _relu,
    keras.activations.sigmoid: _sigmoid,
}


def _convolution(layer: keras.layers.Conv2D) -> Callable | None:
    import tensorflow as tf

    def compute(weights, inputs):
        kernel, *bias = weights
        parts = zip(tf.split(inputs, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
        made = [_convolve(part, filters, layer.strides, layer.padding.upper()) for part, filters in parts]
        return sum(bias, tf.concat(made, -1) if layer.groups > 1 else made[0])

    return _activated(layer, compute)


def _convolve(inputs: Any, kernel: Any, strides: tuple[int, int], padding: str) -> Any:
    import tensorflow as tf

    @tf.custom_gradient
    def compute(images, filters):
        outputs = tf.nn.conv2d(images, filters, strides, padding)

        def gradients(upstream):
            to_images = tf.nn.conv2d_transpose(upstream, filters, images.shape, strides, padding)
            # Channels take the place of the batch, and the outputs' gradients that of a dilated kernel.
            sides = list(zip(images.shape[1:3], filters.shape[:2], outputs.shape[1:3], strides, strict=True))
            reach = [size + (count - 1) * step for _, size, count, step in sides]
            gaps = [max(0, need - side[0]) for need, side in zip(reach, sides, strict=True)]
            padded = tf.pad(images, [[0, 0], *([gap // 2, gap - gap // 2] for gap in gaps), [0, 0]])
            padded = padded[:, : reach[0], : reach[1]]
            to_filters = tf.nn.conv2d(
                tf.transpose(padded, (3, 1, 2, 0)), tf.transpose(upstream, (1, 2, 0, 3)), 1, "VALID", dilations=strides
            )
            return to_images, tf.transpose(to_filters, (1, 2, 0, 3))

        return outputs, gradients

    return compute(inputs, kernel)
