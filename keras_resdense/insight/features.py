"""Feature maps of a network, and freezing its stages for fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

from keras_resdense.graph import Place, placed_layers
from keras_resdense.networks.model import Model

#: Kinds and roles of the layers whose strides multiply, and of those that can end a level; the last one in it counts.
_STRIDED = {("stem", "conv"), ("stem", "pool"), ("block", "conv"), ("transition", "pool")}
_ENDS = {("stem", "conv"), ("stem", "relu"), ("block", "out"), ("layer", "out"), ("stage", "out")}


def feature_extractor(model: keras.Model, levels: Sequence[str] | None = None, prefix: str = "") -> keras.Model:
    """Builds a model that returns a network's feature maps.

    Level Pn is the deepest map of stride 2ⁿ, as in KerasHub's pyramid outputs and timm's `features_only`: the end
    of a stage or, for P1, the stem before its pooling. In a pre-activation network, a map is the sum before the next
    activation. In a dense network, the deepest map comes after the last activation.

    Args:
        model: Network of this package. The new model shares its weights.
        levels: Levels, such as `("P3", "P5")`; default those of P2 to P5 that the network has, or all levels of a
            CIFAR network.
        prefix: The `layer_prefix` the model was built with.

    Returns:
        Functional model from images to a dict of levels, each `(batch, height, width, channels)`.

    Raises:
        ValueError: If the network lacks a level, or is a layer of the model.
    """
    found = feature_levels(model, prefix)
    if levels is None:
        levels = [level for level in found if level in ("P2", "P3", "P4", "P5")] if "P3" in found else list(found)
    if isinstance(levels, str) or any(level not in found for level in levels):
        raise ValueError(f"levels is {levels!r}; it must be a sequence of {', '.join(map(repr, found))}.")
    if not set(found.values()) <= {layer.name for layer in model.layers}:
        raise ValueError(f"{model.name} holds its network as a layer: pass that layer instead.")
    outputs = {level: model.get_layer(found[level]).output for level in levels}
    return Model(_inputs(model), outputs, name=f"{model.name}_features")


@keras.saving.register_keras_serializable("keras_resdense")
class Backbone(Model):
    """A network as the image encoder of KerasHub's task models, such as RetinaNet and DeepLabV3.

    Create one with `as_backbone`. A saved file names this class, so import it before opening the file:
    `from keras_resdense import Backbone`.
    """

    @property
    def pyramid_outputs(self) -> dict[str, keras.KerasTensor]:
        """Maps levels, "P1" to "P5", to feature maps `(batch, height, width, channels)`."""
        return {level: self.get_layer(name).output for level, name in feature_levels(self, None).items()}


def as_backbone(model: keras.Model, prefix: str = "") -> Backbone:
    """Turns a network into an image encoder for KerasHub's task models, which read `pyramid_outputs`.

    Args:
        model: Network of this package, with or without its classifier. The backbone shares its weights.
        prefix: The `layer_prefix` it was built with.

    Returns:
        Functional model from images to the last feature map.

    Raises:
        ValueError: If the network has no stages, or is a layer of the model.
    """
    features = feature_extractor(model, list(feature_levels(model, prefix)), prefix)
    backbone = Backbone(_inputs(model), list(features.output.values())[-1], name=f"{model.name}_backbone")
    backbone.recomputes_blocks = getattr(model, "recomputes_blocks", False)
    return backbone


def feature_levels(model: keras.Model, prefix: str | None = "") -> dict[str, str]:
    """Maps each level of a network to the name of its layer; a prefix of None matches any."""
    stride, levels, has_blocks = 1, {}, False
    for place, layer in placed_layers(model, prefix):
        has_blocks |= place.kind == "block"
        if (place.kind, place.role) in _STRIDED:
            stride *= layer.strides[0]
        ends_dense_network = (place.kind, place.role) == ("final", "relu") and not has_blocks
        if (place.kind, place.role) in _ENDS or ends_dense_network:
            levels[f"P{int(math.log2(stride))}"] = layer.name
    if not levels:
        raise ValueError(
            f"{model.name} has no stages: it is not a network of this package, or its layer_prefix is not {prefix!r}."
        )
    return levels


def freeze(model: keras.Model, up_to: str | int | None, prefix: str = "") -> None:
    """Freezes a network from the images up to a stage, and unfreezes all later layers.

    A frozen layer keeps its weights. A frozen batch norm also keeps its statistics and normalises with them in
    training. Compile the model afterwards.

    Args:
        model: Network of this package, or a model built on its layers.
        up_to: "stage3" or 3 (the stem is stage 1), a level such as "P4", or None to unfreeze everything.
        prefix: The `layer_prefix` the network was built with.

    Raises:
        ValueError: If the network does not have that stage or level.
    """
    last = _last_frozen(model, up_to, prefix)
    for place, layer in placed_layers(model, prefix):
        layer.trainable = _depth(place) > last


def _inputs(model: keras.Model) -> keras.KerasTensor | list[keras.KerasTensor]:
    """Returns a model's input, or the list of its inputs if there are several."""
    return model.inputs[0] if len(model.inputs) == 1 else model.inputs


def _last_frozen(model: keras.Model, up_to: str | int | None, prefix: str) -> float:
    if up_to is None:
        return 0
    depths = {layer.name: _depth(place) for place, layer in placed_layers(model, prefix)}
    levels = {level: depths[name] for level, name in feature_levels(model, prefix).items()}
    stages = sorted({depth for depth in depths.values() if depth < math.inf})
    known = levels | {f"stage{stage}": stage for stage in stages} | {stage: stage for stage in stages}
    if isinstance(up_to, bool) or up_to not in known:
        raise ValueError(
            f"up_to is {up_to!r}; {model.name} has {', '.join(map(str, known))}, and None unfreezes everything."
        )
    return known[up_to]


def _depth(place: Place) -> float:
    """Returns the stage a layer belongs to, and infinity beyond the last."""
    return place.stage or math.inf
