"""Look inside a built model: what its parts cost and see, what it looks at, how gradients and features flow.

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
    """Counts the parameters of a model that training adjusts; frozen ones count, too."""
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
class Part:
    """A stage, a block or a layer of a network in numbers.

    Attributes:
        name: Its name, such as "stem", "stage2", "stage2_block1", "stage2_layer6", "stage2_transition", "head".
        output_shape: Output shape of its last layer for one image, `(height, width, channels)` or `(classes,)`.
        parameters: Those that training adjusts; frozen ones count, too.
        macs: Multiply-adds of its convolutions and dense layers for one image.
        activation_bytes: Bytes of the outputs of all its layers for one image in float32: the most that a training step
            keeps of it. What runtimes compute in place is counted, too.
        receptive_field: Side, in pixels of the image, of the square that a pixel of its output sees through
            convolutions and poolings, borders of the image or not. Squeeze-and-excitation gates, which weigh
            channels by the mean of the whole image, are left out. None behind global pooling.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int
    receptive_field: int | None


def summarise(model: keras.Model, per: Literal["stage", "block", "layer"] = "stage") -> list[Part]:
    """Says what each part of a network costs and sees.

    Args:
        model: Functional or sequential, built for a fixed size of input; its layers may be models, too.
        per: "stage", "block" (and dense layer) or, for networks of any package, "layer".

    Returns:
        Parts from the image to the classes. A dense network's transitions are parts of their own.

    Raises:
        ValueError: If the size of the input is not fixed, the graph is not known, or there are no stages.
    """
    model, fields = _functional(model), {}
    _require_fixed_size(model)
    _look_through(model, [_Field()] * len(model.inputs), fields)
    return [_part(name, layers, fields) for name, layers in group_layers(model, per).items()]


def group_layers(model: keras.Model, per: Literal["stage", "block", "layer"]) -> dict[str, list[keras.Layer]]:
    """Maps the name of each part, as `summarise` returns them, to its layers that compute something."""
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
        raise ValueError(f"{model.name} has no stages: it is none of this package's. Only its layers can be listed.")
    return groups


def format_parts(parts: Sequence[Part]) -> str:
    """Returns a table of parts, a line each, and their total."""
    width = max(len(part.name) for part in parts) + 2
    lines = [f"{'':{width}}{'output':>16}{'parameters':>14}{'MMACs':>12}{'activations':>14}{'sees':>11}"]
    for part in parts:
        field = "the image" if part.receptive_field is None else f"{part.receptive_field} px"
        lines.append(f"{part.name:{width}}{_times(part.output_shape):>16}{_costs(part)}{field:>11}")
    total = {field: sum(getattr(part, field) for part in parts) for field in ("parameters", "macs", "activation_bytes")}
    return "\n".join([*lines, f"{'total':{width}}{'':>16}{_costs(dataclasses.replace(parts[-1], **total))}"])


def write_parts(parts: Sequence[Part], path: Path | str) -> None:
    """Writes parts as CSV, a row each; shapes as in 56×56×256.

    Raises:
        ValueError: If the file cannot be written.
    """
    with staged(Path(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Part)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(part) | {"output_shape": _times(part.output_shape)} for part in parts)


def grad_cam(model: keras.Model, images: Any, classes: Any = None) -> np.ndarray:
    """Shows where a network looks: Grad-CAM (1610.02391, section 3) on its last feature map.

    Args:
        model: Classifier, functional or sequential, that ends in a dense layer or an activation.
        images: As the model takes them, `(batch, height, width, channels)`.
        classes: Number of the class to explain for each image, `(batch,)`; default the most probable ones.

    Returns:
        `(batch, height, width)` in [0, 1], float32: 1 at the place that speaks most for the class. An image whose
        map has no such place is 0 everywhere.

    Raises:
        ValueError: If the network is a layer of the model, pooling included, so that its last map is out of reach.
    """
    require_tensorflow("grad_cam")
    import tensorflow as tf

    model = _functional(model)
    last_map = _last_map(model)
    images = tf.cast(images, "float32")
    maps = keras.Model(model.inputs, last_map)(images, training=False)
    # Heads may read earlier maps, too, and those need the images.
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
    """How strongly the loss pulls at a convolution.

    Attributes:
        layer: Its name.
        norm: Euclidean norm of the gradient of the mean cross-entropy by its kernel.
    """

    layer: str
    norm: float


def gradient_norms(model: keras.Model, images: Any, labels: Any) -> list[GradientNorm]:
    """Measures gradients by depth, as the next training step would find them; changes nothing in the model.

    Batch norm takes the statistics of the batch, dropout drops; weight decay is left out.

    Args:
        model: Classifier that ends in a dense layer or an activation.
        images: As the model takes them, `(batch, height, width, channels)`.
        labels: Their classes, `(batch,)`.

    Returns:
        Of each convolution that is not frozen, from the image to the classes.
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
    """Measures how much dense layers read what each layer before them has made (1608.06993, section 5, figure 5).

    Args:
        model: With dense blocks.

    Returns:
        Of each block, such as "stage2", the mean absolute weight `(sources, readers)`. Sources are the block's
        input and its layers; readers are its layers, by their first convolutions, and then the transition or
        classifier, if there is one. NaN where a layer would read what comes later.

    Raises:
        ValueError: If there are no dense blocks.
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
    """Averages over the channels of each source: every layer reads what the one before it did, and what that made."""
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
    """Lists a layer's weights that training adjusts, or would if the layer were not frozen."""
    if layer.trainable:
        return layer.trainable_weights
    return [weight for weight in layer.weights if not weight.name.startswith("moving_")]


def _size(weights: Iterable[keras.Variable]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _macs(layer: keras.Layer) -> int:
    if isinstance(layer, keras.layers.Conv2D):
        return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
    return math.prod(layer.kernel.shape) if isinstance(layer, keras.layers.Dense) else 0


def _part(name: str, layers: list[keras.Layer], fields: dict) -> Part:
    field = fields[layers[-1]]
    return Part(
        name=name,
        output_shape=tuple(layers[-1].output.shape[1:]),
        parameters=sum(_size(_parameters(layer)) for layer in layers),
        macs=sum(map(_macs, layers)),
        activation_bytes=sum(4 * math.prod(layer.output.shape[1:]) for layer in layers),
        receptive_field=field and field.last - field.first + 1,
    )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _costs(part: Part) -> str:
    return f"{part.parameters:14,}{part.macs / 1e6:12,.1f}{part.activation_bytes / 1e6:11,.1f} MB"


@dataclasses.dataclass(frozen=True)
class _Field:
    """What a map's first pixel sees of the image, from pixel `first` to `last`; its next sees `stride` further."""

    first: int = 0
    last: int = 0
    stride: int = 1


def _functional(model: keras.Model) -> keras.Model:
    if not is_graph(model):
        raise ValueError(
            f"{model.name} is a {type(model).__name__} whose layers' graph is not known; allowed are "
            "functional models and sequential ones that start with keras.Input."
        )
    return keras.Model(model.inputs, model.outputs) if isinstance(model, keras.Sequential) else model


def _look_through(model: keras.Model, fields: list[_Field | None], found: dict) -> list[_Field | None]:
    """Follows what the pixels of maps see.

    Args:
        model: Any.
        fields: Fields of its inputs.
        found: Takes the field of each layer's output, those of models in the model included.

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
    """Returns what a layer's output sees, if its inputs see that; None where global pooling ends the view."""
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
        # Where it pads channels, told that they come first, it has the width in this place, and adds nothing.
        shift = layer.padding[0][0] * stride
        return _Field(first - shift, last - shift, stride)
    return _Field(first, last, stride) if before == after else None


def _last_map(model: keras.Model):
    """Returns the last tensor `(batch, height, width, channels)` that a layer reads."""
    for call in reversed(list(calls(model))):
        for tensor in call.input_tensors:
            if len(tensor.shape) == 4:
                if isinstance(call.operation, keras.Model):
                    raise ValueError(
                        f"The last feature map of {model.name} is inside of its layer {call.operation.name}: "
                        "pass that layer, or build the head on its output with include_top=False."
                    )
                return tensor
    raise ValueError(f"{model.name} has no feature maps (batch, height, width, channels).")


@contextlib.contextmanager
def _scores_as_outputs(model: keras.Model) -> Iterator[None]:
    """Lets a classifier return its scores, ahead of the softmax."""
    *_, last = all_layers(model)
    if not hasattr(last, "activation"):
        raise ValueError(
            f"{model.name} ends in {last.name}, a {type(last).__name__}; end it in Dense or Activation, whose scores "
            "ahead of the activation can be read."
        )
    activation, last.activation = last.activation, keras.activations.linear
    try:
        yield
    finally:
        last.activation = activation
