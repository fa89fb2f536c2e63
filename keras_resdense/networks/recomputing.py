"""Residual networks that compute feature maps again for the gradient instead of keeping them (1604.06174)."""

from __future__ import annotations

import itertools

import keras

from keras_resdense.graph import place_of

#: Kind and role of the last layer of a block, and of a stage that is a model in the model.
_ENDS = (("block", "out"), ("stage", "out"))


def segments(network: keras.Model) -> list[keras.Model]:
    """Divides a residual network at the end of its stem and of each block before its last stage.

    Returns:
        Models on the network's layers, each of which reads the outputs of the one before it: the stem; the blocks,
        which training recomputes; the last stage, whose feature maps are small, with the head.
    """
    places = [(place, layer) for layer in network.layers if (place := place_of(layer.name))]
    ends = [(place.stage, layer.output) for place, layer in places if (place.kind, place.role) in _ENDS]
    *_, stem = (layer.output for place, layer in places if place.kind == "stem")
    last, _ = ends[-1]
    cuts = [network.inputs, stem, *(output for stage, output in ends if stage < last), network.outputs]
    return [keras.Model(_alone(start), _alone(end)) for start, end in itertools.pairwise(cuts)]


def _alone(tensors):
    return tensors[0] if isinstance(tensors, list) and len(tensors) == 1 else tensors
