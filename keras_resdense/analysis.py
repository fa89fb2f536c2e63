"""Look inside a built model."""

from __future__ import annotations

import math

import keras

from keras_resdense.layers import all_layers


def count_parameters(model: keras.Model) -> int:
    """Counts the trainable parameters of a model."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def count_macs(model: keras.Model) -> int:
    """Counts multiply-adds of convolutions and dense layers for one image.

    Args:
        model: Functional model built for a fixed size of input.

    Raises:
        ValueError: If the size of the input is not fixed.
    """
    if None in model.input_shape[1:]:
        raise ValueError(f"The model takes {model.input_shape}; build it with a fixed input_shape to count its MACs.")
    total = 0
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Conv2D):
            total += math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
        elif isinstance(layer, keras.layers.Dense):
            total += math.prod(layer.kernel.shape)
    return total
