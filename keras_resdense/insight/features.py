"""Backbones: feature maps of a network, and freezing it for fine-tuning."""

from __future__ import annotations

import math
import re

import keras

from keras_resdense.graph import all_layers
from keras_resdense.networks.model import Model

_STRIDED = r"(stem_conv\d|stem_pool|stage\d_block\d+_conv\d|stage\d_transition_pool)"
_CANDIDATES = r"(stem_relu\d|stem_conv\d|stage\d_((block|layer)\d+_)?out)"


def feature_extractor(model: keras.Model, levels: tuple[str, ...] | None = None, prefix: str = "") -> keras.Model:
    """Makes a model of a network's feature maps.

    Pn is the deepest map whose pixels are 2ⁿ pixels of the image apart, as in KerasHub's pyramid outputs
    and timm's `features_only`: the end of a stage, and for P1 the stem ahead of its pooling. A
    pre-activation network gives the sums before the next activation; a dense one ends in its last
    activation.

    Args:
        model: One of this package's; weights are shared with it.
        levels: Which; default P2 to P5 as far as the network has them, or all of a CIFAR network's.
        prefix: The `layer_prefix` the model was built with.

    Returns:
        Functional model from images to a dict from level to `(batch, height, width, channels)`.

    Raises:
        ValueError: If the network has no such level, or is a layer of the model.
    """
    found = feature_levels(model, prefix)
    if levels is None:
        levels = [level for level in found if level in ("P2", "P3", "P4", "P5")] if "P3" in found else list(found)
    missing = [level for level in levels if level not in found]
    if missing:
        raise ValueError(f"{model.name} has no level {', '.join(missing)}; it has {', '.join(found)}.")
    if not set(found.values()) <= {layer.name for layer in model.layers}:
        raise ValueError(f"{model.name} holds its network as a layer: pass that layer instead.")
    outputs = {level: model.get_layer(found[level]).output for level in levels}
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    return Model(inputs, outputs, name=f"{model.name}_features")


def feature_levels(model: keras.Model, prefix: str = "") -> dict[str, str]:
    """Maps each level that a network has to the layer whose output it is."""
    stride, levels = 1, {}
    for name, layer in _own_layers(model, prefix).items():
        if re.fullmatch(_STRIDED, name):
            stride *= layer.strides[0]
        if re.fullmatch(_CANDIDATES, name):
            levels[f"P{int(math.log2(stride))}"] = layer.name
        elif name == "final_relu" and not any("_block" in found for found in levels.values()):
            levels[f"P{int(math.log2(stride))}"] = layer.name
    if not levels:
        raise ValueError(f"{model.name} has no stages: it is none of this package's, or prefix is not {prefix!r}.")
    return levels


def freeze(model: keras.Model, up_to: str | int | None, prefix: str = "") -> None:
    """Freezes a network from the images up to a stage, and thaws what lies beyond.

    A frozen layer keeps its weights, and a frozen batch norm its statistics, which it then normalises with
    in training, too. Compile the model afterwards.

    Args:
        model: One of this package's, or one built on its layers.
        up_to: "stage3" or 3 (the stem is stage 1), a level such as "P4", or None to thaw everything.
        prefix: The `layer_prefix` the network was built with.

    Raises:
        ValueError: If the network has no such stage or level.
    """
    last = _stage(model, up_to, prefix)
    for name, layer in _own_layers(model, prefix).items():
        stage = _stage_of(name)
        if stage is not None:
            layer.trainable = stage > last


def _own_layers(model: keras.Model, prefix: str) -> dict[str, keras.Layer]:
    """Maps names without the prefix to the layers that have it."""
    return {layer.name.removeprefix(prefix): layer for layer in all_layers(model) if layer.name.startswith(prefix)}


def _stage(model: keras.Model, up_to: str | int | None, prefix: str) -> float:
    if up_to is None:
        return 0
    levels = {level: _stage_of(name.removeprefix(prefix)) for level, name in feature_levels(model, prefix).items()}
    stages = sorted({_stage_of(name) for name in _own_layers(model, prefix)} - {None, math.inf})
    known = levels | {f"stage{stage}": stage for stage in stages} | {stage: stage for stage in stages}
    if isinstance(up_to, bool) or up_to not in known:
        raise ValueError(f"up_to is {up_to!r}; {model.name} has {', '.join(map(str, known))}; None thaws everything.")
    return known[up_to]


def _stage_of(name: str) -> float | None:
    """Returns the stage a layer belongs to: 1 for the stem, infinity beyond the last, None for foreign layers."""
    if match := re.match(r"stage(\d)_", name):
        return int(match[1])
    if name.startswith("stem_"):
        return 1
    return math.inf if name.startswith(("final_", "predictions")) else None
