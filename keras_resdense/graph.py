"""The layers of a model, including nested ones, and the grammar of their names.

A network's layers are named `{prefix}{unit}_{role}{number}`:

* units: `stem`, `stage2_block1`, `stage2_layer6` (of a dense block), `stage2_transition`, `final` (the last batch norm
  and activation of a network that ends in them), and `stage2` where a stage is a model in the model;
* roles: `conv`, `bn`, `relu`, `pool`, `out` (the unit's last layer), `shortcut_conv`, `se_reduce` and so on;
* the head's layers have no unit: `avg_pool`, `max_pool`, `dropout`, `predictions`.

`place_of` reads such names, and nothing else in the package does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras

_NAME = re.compile(
    r"""(?P<prefix>.*?)
    (?: (?P<unit> (?P<end>stem|final) | stage(?P<stage>\d+) (?:_ (?: (?P<inner>block|layer)(?P<index>\d+)
                                                                  | (?P<between>transition) ))? )
        _(?P<role> (?:shortcut_|se_)?
                   (?:conv|bn|relu|pool|pad|squeeze|reduce|expand|gate|scale|dropout|drop_path|add|bn_out|out|input) )
        (?P<number>\d*) (?P<helper>_pad|_window)?
    | (?P<head>avg_pool|max_pool|dropout|predictions) )""",
    re.VERBOSE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The place and role of a layer in a network.

    Attributes:
        unit: Name of its unit: "stem", "stage2_block1", "stage2_layer6", "stage2_transition", "final", "head" or so.
        kind: "stem", "block", "layer", "transition", "stage", "final" or "head".
        stage: 1 for the stem, then from 2 as in the paper's table 1; 0 after the last stage.
        index: Number of the block or dense layer in its stage, from 1; 0 elsewhere.
        role: Role of the layer in its unit: "conv", "bn", "relu", "out", "shortcut_conv", "conv_pad", …
        number: Number among the layers of its role in its unit, from 1; 0 if it is the only one.
    """

    unit: str
    kind: str
    stage: int = 0
    index: int = 0
    role: str
    number: int = 0


def place_of(name: str, prefix: str | None = None) -> Place | None:
    """Parses the name of a layer.

    Args:
        name: Name of the layer.
        prefix: The `layer_prefix` that its network was built with; None for any.

    Returns:
        None if the layer does not belong to a network with that prefix.
    """
    if prefix is not None:
        if not name.startswith(prefix):
            return None
        name = name.removeprefix(prefix)
    found = _NAME.fullmatch(name)
    if found is None or (prefix is not None and found["prefix"]):
        return None
    if found["head"]:
        return Place(unit="head", kind="head", role=found["head"])
    return Place(
        unit=found["unit"],
        kind=found["end"] or found["inner"] or found["between"] or "stage",
        stage=1 if found["end"] == "stem" else int(found["stage"] or 0),
        index=int(found["index"] or 0),
        role=found["role"] + (found["helper"] or ""),
        number=int(found["number"] or 0),
    )


def placed_layers(model: keras.Model, prefix: str | None = None) -> Iterator[tuple[Place, keras.Layer]]:
    """Yields the layers of a model whose names `place_of` can parse, in their order."""
    for layer in all_layers(model):
        if place := place_of(layer.name, prefix):
            yield place, layer


def nest(add: Callable[[keras.KerasTensor], keras.KerasTensor], x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Adds layers as a model inside the model, followed by a layer `{name}_out` of the outer model.

    Args:
        add: Function that adds the layers to a Keras tensor.
        x: Keras tensor to add them to.
        name: Name of the inner model.

    Returns:
        Keras tensor of the same shape as `add(x)`.
    """
    inputs = keras.Input(batch_shape=x.shape, name=f"{name}_input")
    return keras.layers.Identity(name=f"{name}_out")(keras.Model(inputs, add(inputs), name=name)(x))


def all_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """Yields a model's layers. Layers that are models are replaced by their own layers."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer


def is_graph(model: keras.Model) -> bool:
    """Returns whether the graph of a model's layers is known: it is functional, or sequential and built."""
    return bool(model.built) if isinstance(model, keras.Sequential) else "input_layers" in model.get_config()


def calls(model: keras.Model) -> Iterator[Any]:
    """Yields the calls of a functional model's layers, each after the calls whose outputs it reads."""
    # Keras has no public way to distinguish the calls in this model from those in others that share its layers.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]
