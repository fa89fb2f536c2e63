"""Analyses of a built model: cost and receptive field of its parts, Grad-CAM, gradient norms and feature reuse.

Every function returns data; `keras_resdense.insight.drawing` draws it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_resdense.checks import require_tensorflow
from keras_resdense.files import staged
from keras_resdense.graph import all_layers, calls, is_graph, place_of

_WINDOWS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
)


def count_parameters(model: keras.Model) -> int:
    """Counts the trainable parameters of a model, including those of frozen layers."""
    own = {id(weight): weight for weight in model.trainable_weights}
    return _size((own | {id(weight): weight for layer in all_layers(model) for weight in _parameters(layer)}).values())


def count_macs(model: keras.Model) -> int:
    """Counts multiply-adds of convolutions and dense layers for one image.

    Args:
        model: Functional model built for a fixed size of input.

    Raises:
        ValueError: If the size of the input is not fixed.
    """
    _require_fixed_size(model)
    return sum(map(_macs, all_layers(model)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartSummary:
    """Cost and receptive field of a stage, a block or a layer.

    Attributes:
        name: Its name, such as "stem", "stage2", "stage2_block1", "stage2_layer6", "stage2_transition", "head".
        output_shape: Output shape of its last layer for one image, `(height, width, channels)` or `(classes,)`.
        parameters: Trainable parameters, including those of frozen layers.
        macs: Multiply-adds of its convolutions and dense layers for one image.
        activation_bytes: Bytes of the outputs of all its layers for one image in float32. This is the most that a
            training step keeps; outputs that runtimes compute in place are counted, too.
        receptive_field: Side, in pixels of the image, of the square that a pixel of its output depends on through
            convolutions and poolings, ignoring the image's borders. Squeeze-and-excitation gates, which average
            over the entire image, are not counted. None after global pooling.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int
    receptive_field: int | None


def summarise(model: keras.Model, per: Literal["stage", "block", "layer"] = "stage") -> list[PartSummary]:
    """Lists the parts of a network with their cost and receptive field.

    Args:
        model: Functional or sequential model built for a fixed input size. Its layers may be models, too.
        per: Unit of the list: "stage", "block" (or dense layer) or, for networks of any package, "layer".

    Returns:
        Parts from the image to the classes. A dense network's transitions are separate parts.

    Raises:
        ValueError: If the input size is not fixed, the graph is unknown, or there are no stages.
    """
    model, fields = _functional(model), {}
    _require_fixed_size(model)
    _look_through(model, [_Field()] * len(model.inputs), fields)
    return [_part(name, layers, fields) for name, layers in group_layers(model, per).items()]


def group_layers(model: keras.Model, per: Literal["stage", "block", "layer"]) -> dict[str, list[keras.Layer]]:
    """Maps the name of each part, as in `summarise`, to its layers, without inputs and identities."""
    if per not in ("stage", "block", "layer"):
        raise ValueError(f"per is {per!r}; it must be 'stage', 'block' or 'layer'.")
    groups, name = {}, "stem"
    for layer in all_layers(model):
        if isinstance(layer, (keras.layers.InputLayer, keras.layers.Identity)):
            continue
        place = place_of(layer.name)
        if place and place.kind in ("block", "layer", "transition"):
            name = place.unit if per == "block" or place.kind == "transition" else f"stage{place.stage}"
        elif name != "stem":
            name = "head"
        groups.setdefault(layer.name if per == "layer" else name, []).append(layer)
    if name == "stem" and per != "layer":
        raise ValueError(f"{model.name} has no stages: it is not a network of this package. Pass per='layer'.")
    return groups


def format_parts(parts: Sequence[PartSummary]) -> str:
    """Returns a table of parts, one per line, and their total."""
    width = max(len(part.name) for part in parts) + 2
    lines = [f"{'':{width}}{'output':>16}{'parameters':>14}{'MMACs':>12}{'activations':>14}{'sees':>11}"]
    for part in parts:
        field = "the image" if part.receptive_field is None else f"{part.receptive_field} px"
        lines.append(f"{part.name:{width}}{_times(part.output_shape):>16}{_costs(part)}{field:>11}")
    total = {field: sum(getattr(part, field) for part in parts) for field in ("parameters", "macs", "activation_bytes")}
    return "\n".join([*lines, f"{'total':{width}}{'':>16}{_costs(dataclasses.replace(parts[-1], **total))}"])


def write_parts(parts: Sequence[PartSummary], path: Path | str) -> None:
    """Writes parts as CSV, one per row, with shapes such as 56×56×256.

    Raises:
        OSError: If the file cannot be written.
    """
    with staged(Path(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(PartSummary)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(part) | {"output_shape": _times(part.output_shape)} for part in parts)


def grad_cam(model: keras.Model, images: Any, classes: Any = None) -> np.ndarray:
    """Shows where a network looks: Grad-CAM (1610.02391, section 3) on its last feature map.

    Args:
        model: Functional or sequential classifier that ends in a dense layer or an activation.
        images: The model's inputs, `(batch, height, width, channels)`.
        classes: Index of the class to explain for each image, `(batch,)`; default the most probable classes.

    Returns:
        Heat maps `(batch, height, width)` in [0, 1], float32, with 1 where the evidence for the class is strongest.
        A map is 0 everywhere if nothing in the image is evidence for the class.

    Raises:
        ValueError: If the network and its pooling are one layer of the model, which hides the last feature map.
    """
    require_tensorflow("grad_cam")
    import tensorflow as tf

    model = _functional(model)
    last_map = _last_map(model)
    images = tf.cast(images, "float32")
    maps = keras.Model(model.inputs, last_map)(images, training=False)
    # A head may also read earlier maps, which need the images.
    head = keras.Model([*model.inputs, last_map], model.outputs[0])
    with _scores_as_outputs(model), tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(maps)
        scores = head([images, maps], training=False)
        classes = tf.argmax(scores, axis=-1) if classes is None else tf.convert_to_tensor(classes)
        chosen = tf.gather(scores, classes, batch_dims=1)
    maps, slopes = (tf.cast(values, "float32") for values in (maps, tape.gradient(chosen, maps)))
    weights = tf.reduce_mean(slopes, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1, keepdims=True))
    heat = tf.image.resize(heat, images.shape[1:3])[..., 0]
    return tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True)).numpy()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientNorm:
    """Gradient norm of a convolution.

    Attributes:
        layer: Name of the convolution.
        norm: Euclidean norm of the gradient of the mean cross-entropy with respect to its kernel.
    """

    layer: str
    norm: float


def gradient_norms(model: keras.Model, images: Any, labels: Any) -> list[GradientNorm]:
    """Measures the gradients of the next training step at each depth, without changing the model.

    Batch norm uses the statistics of the batch, and dropout is active; weight decay is left out.

    Args:
        model: Classifier that ends in a dense layer or an activation.
        images: The model's inputs, `(batch, height, width, channels)`.
        labels: Their classes, `(batch,)`.

    Returns:
        Norms of all convolutions that are not frozen, from the image to the classes.
    """
    require_tensorflow("gradient_norms")
    import tensorflow as tf

    weights = [tf.convert_to_tensor(variable) for variable in model.trainable_variables]
    with _scores_as_outputs(model), tf.GradientTape() as tape:
        tape.watch(weights)
        scores, _ = model.stateless_call(weights, model.non_trainable_variables, images, training=True)
        losses = keras.losses.sparse_categorical_crossentropy(np.asarray(labels), scores, from_logits=True)
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, weights)
    norms = {id(v): float(tf.norm(found)) for v, found in zip(model.trainable_variables, gradients, strict=True)}
    convolutions = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Conv2D)]
    return [
        GradientNorm(layer=layer.name, norm=norms[id(layer.kernel)])
        for layer in convolutions
        if id(layer.kernel) in norms
    ]


def feature_reuse(model: keras.Model) -> dict[str, np.ndarray]:
    """Measures how much dense layers use the features of each earlier layer (1608.06993, section 5, figure 5).

    Args:
        model: Network with dense blocks.

    Returns:
        For each block, such as "stage2", the mean absolute weights `(sources, readers)`. Sources are the block's
        input and its layers. Readers are the first convolutions of its layers, then the transition or classifier
        if there is one. NaN where the source comes after the reader.

    Raises:
        ValueError: If the network has no dense blocks.
    """
    blocks, behind, classifier, made = {}, {}, None, 0
    for layer in all_layers(model):
        place = place_of(layer.name)
        what = place and (place.kind, place.role, place.number)
        if what == ("layer", "conv", 1):
            blocks.setdefault(f"stage{place.stage}", []).append(_mean_weights(layer))
        elif what == ("transition", "conv", 0):
            behind[f"stage{place.stage}"] = [_mean_weights(layer)]
        elif isinstance(layer, keras.layers.Concatenate):
            made = layer.output.shape[-1]
        elif isinstance(layer, keras.layers.Dense):
            classifier = layer
    if not blocks:
        raise ValueError(f"{model.name} has no dense blocks, as densenet121 and the other DenseNets have.")
    if classifier is not None and classifier.kernel.shape[0] == made:
        behind[list(blocks)[-1]] = [_mean_weights(classifier)]
    return {block: _by_source(layers, behind.get(block, [])) for block, layers in blocks.items()}


def _mean_weights(layer: keras.Layer) -> np.ndarray:
    """Returns the mean absolute weight of each channel that a layer reads."""
    kernel = np.abs(keras.ops.convert_to_numpy(layer.kernel))
    return kernel.mean(axis=(*range(kernel.ndim - 2), -1))


def _by_source(layers: list[np.ndarray], behind: list[np.ndarray]) -> np.ndarray:
    """Averages over the channels of each source: a layer reads what the layer before it reads and returns."""
    ends = [len(weights) for weights in layers]
    reuse = np.full((len(layers) + 1, len(layers) + len(behind)), np.nan, "float32")
    for reader, weights in enumerate([*layers, *behind]):
        pieces = np.split(weights, ends[:reader])
        reuse[: len(pieces), reader] = [piece.mean() for piece in pieces]
    return reuse


def _require_fixed_size(model: keras.Model) -> None:
    if None in model.input_shape[1:]:
        raise ValueError(f"The model takes {model.input_shape}; build it with a fixed input_shape to count its MACs.")


def _parameters(layer: keras.Layer) -> list[keras.Variable]:
    """Lists a layer's weights that are trainable while the layer is not frozen."""
    if layer.trainable:
        return layer.trainable_weights
    return [weight for weight in layer.weights if not weight.name.startswith("moving_")]


def _size(weights: Iterable[keras.Variable]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _macs(layer: keras.Layer) -> int:
    if isinstance(layer, keras.layers.Conv2D):
        return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
    return math.prod(layer.kernel.shape) if isinstance(layer, keras.layers.Dense) else 0


def _part(name: str, layers: list[keras.Layer], fields: dict) -> PartSummary:
    field = fields[layers[-1]]
    return PartSummary(
        name=name,
        output_shape=tuple(layers[-1].output.shape[1:]),
        parameters=sum(_size(_parameters(layer)) for layer in layers),
        macs=sum(map(_macs, layers)),
        activation_bytes=sum(4 * math.prod(layer.output.shape[1:]) for layer in layers),
        receptive_field=field and field.last - field.first + 1,
    )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _costs(part: PartSummary) -> str:
    return f"{part.parameters:14,}{part.macs / 1e6:12,.1f}{part.activation_bytes / 1e6:11,.1f} MB"


@dataclasses.dataclass(frozen=True)
class _Field:
    """Receptive field of a map's first pixel: image pixels `first` to `last`. That of the next is `stride` further."""

    first: int = 0
    last: int = 0
    stride: int = 1


def _functional(model: keras.Model) -> keras.Model:
    if not is_graph(model):
        raise ValueError(
            f"{model.name} is a {type(model).__name__} whose graph of layers is unknown; pass a functional model, or "
            "a sequential one that starts with keras.Input."
        )
    return keras.Model(model.inputs, model.outputs) if isinstance(model, keras.Sequential) else model


def _look_through(model: keras.Model, fields: list[_Field | None], found: dict) -> list[_Field | None]:
    """Follows receptive fields through a model.

    Args:
        model: Any model.
        fields: Fields of its inputs.
        found: Dict that gets the field of each layer's output, including layers of models inside the model.

    Returns:
        The fields of its outputs.
    """
    model = _functional(model)
    seen = dict(zip(map(id, model.inputs), fields, strict=True))
    for call in calls(model):
        sources = [seen[id(tensor)] for tensor in call.input_tensors]
        if isinstance(call.operation, keras.Model):
            seen |= zip(map(id, call.output_tensors), _look_through(call.operation, sources, found), strict=True)
        elif sources:
            found[call.operation] = _field_behind(call, [source for source in sources if source])
            seen |= {id(tensor): found[call.operation] for tensor in call.output_tensors}
    return [seen[id(tensor)] for tensor in model.outputs]


def _field_behind(call, sources: list[_Field]) -> _Field | None:
    """Returns the field of a layer's output from those of its inputs; None after global pooling."""
    layer, before, after = call.operation, call.input_tensors[0].shape[1:3], call.output_tensors[0].shape[1:3]
    if not sources:
        return None
    first, last, stride = min(s.first for s in sources), max(s.last for s in sources), sources[0].stride
    if isinstance(layer, _WINDOWS):
        size, step = getattr(layer, "kernel_size", None) or layer.pool_size, layer.strides[0]
        reach = (size[0] - 1) * getattr(layer, "dilation_rate", (1,))[0]
        added = max(0, (after[0] - 1) * step + reach + 1 - before[0]) if layer.padding == "same" else 0
        first -= added // 2 * stride
        return _Field(first, last + (reach - added // 2) * stride, stride * step)
    if isinstance(layer, keras.layers.ZeroPadding2D):
        # A layer that pads channels (with data_format="channels_first") has the width here, which it does not pad.
        shift = layer.padding[0][0] * stride
        return _Field(first - shift, last - shift, stride)
    return _Field(first, last, stride) if before == after else None


def _last_map(model: keras.Model):
    """Returns the last tensor `(batch, height, width, channels)` that is the input of a layer."""
    for call in reversed(list(calls(model))):
        for tensor in call.input_tensors:
            if len(tensor.shape) == 4:
                if isinstance(call.operation, keras.Model):
                    raise ValueError(
                        f"The last feature map of {model.name} is inside its layer {call.operation.name}: "
                        "pass that layer, or build the head on its output with include_top=False."
                    )
                return tensor
    raise ValueError(f"{model.name} has no feature maps (batch, height, width, channels).")


@contextlib.contextmanager
def _scores_as_outputs(model: keras.Model) -> Iterator[None]:
    """Makes a classifier return its scores before the softmax."""
    *_, last = all_layers(model)
    if not hasattr(last, "activation"):
        raise ValueError(
            f"{model.name} ends in {last.name}, a {type(last).__name__}; it must end in Dense or Activation, so that "
            "the scores before the activation can be read."
        )
    activation, last.activation = last.activation, keras.activations.linear
    try:
        yield
    finally:
        last.activation = activation
