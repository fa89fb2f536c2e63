"""Calls a model's layers one after another, so that others may take their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras

from keras_resdense.graph import calls
from keras_resdense.networks.model import Model

#: From a call of a layer, its new positional and its new named arguments to its new output.
Use: TypeAlias = Callable[[Any, tuple, dict], Any]


def follow(model: keras.Model, values: Any, use: Use) -> Any:
    """Returns what a model's output becomes where `use` makes the output of each call, in nested models, too.

    Args:
        model: Functional, with one input and one output.
        values: What takes the place of its input.
        use: Makes the output of a call.
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
    """Returns what `use` makes of each call of a model's layers, of nested ones too, as one functional model.

    Args:
        model: Functional, with one input and one output.
        use: Makes the output of a call.
    """
    images = keras.Input(model.input_shape[1:], name=model.inputs[0].name, dtype=model.inputs[0].dtype)
    made = Model(images, follow(model, images, use), name=model.name)
    for field in ("image_contract", "class_names"):
        setattr(made, field, getattr(model, field, None))
    return made
