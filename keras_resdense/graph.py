"""The layers of a model, and of the models that are layers of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import keras


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


def is_graph(model: keras.Model) -> bool:
    """Says whether the graph of a model's layers is known: functional models, and sequential ones once built."""
    return bool(model.built) if isinstance(model, keras.Sequential) else "input_layers" in model.get_config()
