"""Calls a model's layers one after another, so that each call can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras

from keras_resdense.graph import calls
from keras_resdense.networks.model import Model

#: Function from a call of a layer, its new positional arguments and its new keyword arguments to its new output.
Use: TypeAlias = Callable[[Any, tuple, dict], Any]


def follow(model: keras.Model, values: Any, use: Use) -> Any:
    """Computes a model with `use` in place of the calls of its layers. Nested models are followed, too.

    Args:
        model: Functional model with one input and one output.
        values: Its new input.
        use: Function that computes the output of a call.

    Returns:
        The model's new output.
    """
    known = {id(model.inputs[0]): values}
    for call in calls(model):
        if call.input_tensors:
            args, kwargs = call.arguments.fill_in(known)
            nested = isinstance(call.operation, keras.Model)
            made = follow(call.operation, args[0], use) if nested else use(call, args, kwargs)
            known[id(call.output_tensors[0])] = made
    return known[id(model.outputs[0])]


def retraced(model: keras.Model, use: Use) -> keras.Model:
    """Builds one functional model, without nested ones, with `use` in place of the calls of a model's layers.

    Args:
        model: Functional model with one input and one output.
        use: Function that computes the output of a call.
    """
    images = keras.Input(model.input_shape[1:], name=model.inputs[0].name, dtype=model.inputs[0].dtype)
    made = Model(images, follow(model, images, use), name=model.name)
    for field in ("image_contract", "class_names"):
        setattr(made, field, getattr(model, field, None))
    return made
