"""Rewrites networks for inference: the same numbers from fewer passes over memory.

At inference a batch norm multiplies each channel by a scale and adds a shift. After a convolution, both
can be folded into kernel and bias. This is impossible if the batch norm reads a sum or a concatenation
that other layers read, too (pre-activation, dense blocks). There it becomes a depthwise 1×1 convolution:
one operation instead of two, which runtimes can fuse with the following ReLU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import keras
import numpy as np

from keras_resdense.graph import is_graph
from keras_resdense.networks.model import Model


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Rewrites a network for inference.

    A batch norm after a convolution or dense layer is folded into it, if nothing else reads that layer.
    Dropout and average pooling may come between them, and zero padding if the shift is zero. All other
    batch norms and rescalings of image channels become depthwise 1×1 convolutions of the same name.

    Args:
        model: Functional model, or a built sequential one. Its layers may be models, too. It is not changed.

    Returns:
        A functional model of plain Keras layers with the same inputs and outputs. It computes in float32,
        regardless of the precision of `model`.

    Raises:
        ValueError: If the graph of the model's layers is unknown.
    """
    graph = _Graph(model, fold_batch_norm)
    for name in list(graph.layers):
        graph.fold(name)
    return graph.build()


def rewrite_for_phones(model: keras.Model) -> keras.Model:
    """Rewrites a network as `fold_batch_norm` does, and then for the runtimes of phones.

    * Max pooling over one pixel, which keeps every n-th pixel, becomes a depthwise 1×1 convolution with that stride,
      because XNNPACK, LiteRT's kernels for CPUs, does not support it. If channels of zeros are appended after it
      (shortcut A), one 1×1 convolution does both.
    * A 1×1 convolution before an average pooling (dense networks' transitions) moves behind it. Both are linear, and
      the convolution then has fewer pixels to compute.
    * Average pooling without padding becomes a depthwise convolution, which XNNPACK also supports for 8 bits.
    * The channels that a dense block concatenates are scaled to one range, which its batch norms know, and its batch
      norms scale them back. In 8 bits all channels share one quantisation step, which is too coarse for channels that
      vary little.
    """
    graph = _Graph(model, rewrite_for_phones)
    layout = (graph.append_channels, graph.subsample, graph.pool_first, graph.average)
    for rewrite in (graph.fold, graph.drop_dropout, *layout, graph.equalise):
        for name in list(graph.layers):
            rewrite(name)
    return graph.build()


def in_float32(model: keras.Model) -> keras.Model:
    """Returns a copy of a model that computes in float32; it accepts the models that `fold_batch_norm` accepts."""
    return _Graph(model, in_float32).build()


def in_full_precision(model: keras.Model) -> keras.Model:
    """Returns the model, or a float32 copy if it computes in half precision, where runtimes round differently."""
    return model if {layer.compute_dtype for layer in model.layers} == {"float32"} else in_float32(model)


class _Graph:
    """A functional model as data.

    Attributes:
        config: Config of the model, for `keras.Model.from_config`.
        layers: The layers' parts of the config, by name.
        objects: The layers themselves, and operations that are not layers, such as those of `keras.ops`.
        reads_floats: Whether all inputs are floats, which convolutions need and rescalings do not.
        carried: The model's image contract and class names.
        weights: Weights of each layer, in the order of its `get_weights`.
        uses: For each layer, all references to its output, `[name, call, output]`. They are part of the
            config: a new name in one is a new connection.
        ranges: For each batch norm that became a convolution, the largest absolute value of each channel it reads.
    """

    def __init__(self, model: keras.Model, rewrite: Callable[[keras.Model], keras.Model]):
        """Reads a model and rewrites those of its layers that are models."""
        if not is_graph(model):
            raise ValueError(
                f"{model.name!r} is a {type(model).__name__} whose graph of layers is unknown; pass a functional "
                "model, or a sequential one that starts with keras.Input."
            )
        if isinstance(model, keras.Sequential):
            model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        self.config = json.loads(model.to_json())["config"]
        self.layers = {layer["name"]: layer for layer in self.config["layers"]}
        self.objects = {operation.name: operation for operation in model.operations}
        for name, layer in self.objects.items():
            if isinstance(layer, keras.Model):
                self.objects[name] = rewrite(layer)
                self.layers[name] |= json.loads(self.objects[name].to_json())
            elif isinstance(layer, keras.Layer) and not isinstance(layer, keras.layers.InputLayer):
                self.layers[name]["config"]["dtype"] = "float32"
        self.carried = {name: getattr(model, name, None) for name in ("image_contract", "class_names")}
        self.reads_floats = all("float" in tensor.dtype for tensor in model.inputs)
        self.weights = {name: layer.get_weights() for name, layer in self.objects.items() if hasattr(layer, "weights")}
        self.uses, self.ranges = {name: [] for name in self.layers}, {}
        outputs = self.config["output_layers"]
        outputs = [outputs] if isinstance(outputs[0], str) else outputs
        for reference in [*_references([layer["inbound_nodes"] for layer in self.layers.values()]), *outputs]:
            self.uses[reference[0]].append(reference)

    def build(self) -> keras.Model:
        """Returns the model that the graph now describes."""
        self.config["layers"] = list(self.layers.values())
        # The drop-in layers of training are replaced by Keras's own, because folding changes their arguments.
        for layer in self.config["layers"]:
            layer["registered_name"] = None if layer["module"].startswith("keras.") else layer["registered_name"]
        # The module is needed, because Keras has a function `add` and a layer Add.
        kinds = {type(layer) for layer in self.objects.values() if not type(layer).__module__.startswith("keras.")}
        classes = {kind.__name__: kind for kind in kinds}
        model = Model.from_config(self.config, custom_objects=classes)
        for layer in model.layers:
            layer.set_weights(self.weights[layer.name])
        model.image_contract, model.class_names = self.carried["image_contract"], self.carried["class_names"]
        return model

    def fold(self, name: str) -> None:
        """Folds a layer that scales and shifts channels into the convolution before it, or converts it to one."""
        affine = _affine(self.objects[name], self._input_shape(name))
        if affine is None:
            return
        scale, shift = affine
        sources = self._sources(name)
        target = self._target(sources[0], shift) if len(sources) == 1 else None
        if target is not None:
            self._absorb(target, scale, shift)
            self._remove(name)
        elif len(self._input_shape(name)) == 4 and self.reads_floats:
            norm = isinstance(self.objects[name], keras.layers.BatchNormalization)
            if norm:
                self.ranges[name] = _range(self.objects[name])
            # Fixed values become weights that are not trainable.
            convolution = keras.layers.DepthwiseConv2D(1, name=name, trainable=norm and self.objects[name].trainable)
            self._replace(name, convolution, [scale.reshape(1, 1, -1, 1), shift])

    def drop_dropout(self, name: str) -> None:
        """Removes a layer that does nothing at inference."""
        if isinstance(self.objects[name], keras.layers.Dropout | keras.layers.SpatialDropout2D):
            self._remove(name)

    def append_channels(self, name: str) -> None:
        """Replaces a subsampling and the layer that appends channels to it by one convolution."""
        layer = self.objects[name]
        if not isinstance(layer, keras.layers.ZeroPadding2D) or layer.data_format != "channels_first":
            return
        source = self._sources(name)[0]
        if _subsamples(self.objects[source]) and len(self.uses[source]) == 1:
            channels = self._input_shape(source)[-1]
            before, after = layer.padding[1]
            strides = self.objects[source].strides
            kernel = np.pad(np.eye(channels), ((0, 0), (before, after)))[None, None]
            convolution = keras.layers.Conv2D(kernel.shape[-1], 1, strides=strides, **_FIXED, name=name)
            self._replace(name, convolution, [kernel])
            self._remove(source)

    def subsample(self, name: str) -> None:
        """Replaces a pooling over one pixel by a depthwise convolution."""
        layer = self.objects[name]
        if _subsamples(layer):
            channels = self._input_shape(name)[-1]
            convolution = keras.layers.DepthwiseConv2D(1, strides=layer.strides, **_FIXED, name=name)
            self._replace(name, convolution, [np.ones((1, 1, channels, 1))])

    def pool_first(self, name: str) -> None:
        """Moves an average pooling before the 1×1 convolution that it reads."""
        if not isinstance(self.objects[name], keras.layers.AveragePooling2D):
            return
        convolution = self._sources(name)[0]
        layer = self.objects[convolution]
        pointwise = isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == layer.strides == (1, 1)
        if not pointwise or self._target(convolution, np.zeros(1)) is None:
            return
        (pool_reads,) = _tensors(self.layers[name]["inbound_nodes"])
        (convolution_reads,) = _tensors(self.layers[convolution]["inbound_nodes"])
        between = pool_reads["keras_history"]
        pool_reads |= convolution_reads
        pooled = self.objects[name].compute_output_shape(pool_reads["shape"])
        convolution_reads |= {"shape": [*pooled], "keras_history": between}
        between[0] = name
        for reference in self.uses[name]:
            reference[0] = convolution
        self.uses[convolution], self.uses[name] = self.uses[name], [between]

    def average(self, name: str) -> None:
        """Replaces an average pooling without padding by a depthwise convolution."""
        layer = self.objects[name]
        if not isinstance(layer, keras.layers.AveragePooling2D):
            return
        _, *sides, channels = self._input_shape(name)
        tiles = layer.pool_size == layer.strides and all(side and side % layer.strides[0] == 0 for side in sides)
        if layer.padding == "valid" or tiles:
            size = layer.pool_size
            convolution = keras.layers.DepthwiseConv2D(size, strides=layer.strides, **_FIXED, name=name)
            self._replace(name, convolution, [np.full((*size, channels, 1), 1 / np.prod(size))])

    def equalise(self, name: str) -> None:
        """Scales what a dense block concatenates to one range, if convolutions make it and batch norms read it.

        Args:
            name: Name of a layer, such as the batch norm after the block, which is the only one to read all of it.
        """
        end = self._sources(name)[0] if name in self.ranges else ""
        if not isinstance(self.objects.get(end), keras.layers.Concatenate) or len(self.uses[end]) != 1:
            return
        channels = self._ingredients(end)
        parts = [part for part in channels if not isinstance(self.objects[part], keras.layers.Concatenate)]
        inner = [source for joined in channels.keys() - {*parts} for source in self._sources(joined)]
        readers = {
            reader: source
            for reader in self.layers.keys() - channels.keys()
            for source in self._sources(reader)
            if source in channels
        }
        width = sum(channels[part].stop - channels[part].start for part in parts)
        known = sum(len(self.uses[tensor]) for tensor in channels) == len(inner) + len(readers)
        if (
            known
            and readers.keys() <= self.ranges.keys()
            and width == len(self.ranges[name])
            and all(self._is_linear(part) for part in parts)
        ):
            for part in parts:
                self._absorb(part, 1 / self.ranges[name][channels[part]], 0.0)
            for reader, source in readers.items():
                kernel, bias = self.weights[reader]
                self.weights[reader] = [kernel * self.ranges[name][channels[source]].reshape(1, 1, -1, 1), bias]

    def _ingredients(self, name: str, start: int = 0) -> dict[str, slice]:
        """Returns the channel ranges, in a concatenation, of all tensors that it consists of, including itself."""
        found, stop = {}, start
        for tensor in _tensors(self.layers[name]["inbound_nodes"]):
            source, stop = tensor["keras_history"][0], stop + tensor["shape"][-1]
            if isinstance(self.objects[source], keras.layers.Concatenate):
                found |= self._ingredients(source, stop - tensor["shape"][-1])
            found[source] = slice(stop - tensor["shape"][-1], stop)
        return found | {name: slice(start, stop)}

    def _is_linear(self, name: str) -> bool:
        """Returns whether a layer can absorb a scale and is called once."""
        layer = self.objects[name]
        linear = isinstance(layer, _ABSORBING) and layer.activation is keras.activations.linear
        return linear and len(self._sources(name)) == 1

    def _sources(self, name: str) -> list[str]:
        """Returns the layers that a layer reads, in all its calls."""
        return [source for source, *_ in _references(self.layers[name]["inbound_nodes"])]

    def _input_shape(self, name: str) -> list[int | None]:
        """Returns the shape of what a layer reads in its first call, the batch first; [] if it reads nothing."""
        return next(_tensors(self.layers[name]["inbound_nodes"]), {"shape": []})["shape"]

    def _target(self, name: str, shift: np.ndarray) -> str | None:
        """Returns the layer, `name` or one before it, that can absorb the following scale and shift."""
        sources = self._sources(name)
        if len(self.uses[name]) != 1 or len(sources) != 1:
            return None
        layer = self.objects[name]
        if isinstance(layer, _ABSORBING):
            return name if self._is_linear(name) else None
        padding = isinstance(layer, keras.layers.ZeroPadding2D) and layer.data_format == "channels_last"
        if isinstance(layer, _TRANSPARENT) or (padding and not shift.any()):
            return self._target(sources[0], shift)
        return None

    def _absorb(self, name: str, scale: np.ndarray, shift: np.ndarray) -> None:
        kernel, *bias = self.weights[name]
        # A depthwise kernel ends with channels and multiplier, every other one with the filters.
        ending = kernel.shape[-2:] if isinstance(self.objects[name], keras.layers.DepthwiseConv2D) else (-1,)
        bias = bias[0] if bias else 0.0
        self.weights[name] = [kernel * scale.reshape(ending), bias * scale + shift]
        self.layers[name]["config"]["use_bias"] = True

    def _remove(self, name: str) -> None:
        """Connects the readers of a layer to its only source."""
        (own,) = _references(self.layers[name]["inbound_nodes"])
        for reference in self.uses[name]:
            reference[0] = own[0]
        others = [reference for reference in self.uses[own[0]] if reference is not own]
        self.uses[own[0]] = others + self.uses[name]
        del self.layers[name], self.uses[name]

    def _replace(self, name: str, layer: keras.layers.Layer, weights: list[np.ndarray]) -> None:
        layer.dtype_policy = "float32"
        self.objects[name], self.weights[name] = layer, weights
        self.layers[name] |= json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
        for call in self.layers[name]["inbound_nodes"]:
            call["kwargs"] = {}


#: Layers with a kernel and a bias that can take a scale and a shift.
_ABSORBING = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
#: Config of a convolution with fixed weights.
_FIXED = {"use_bias": False, "trainable": False}
#: Layers that commute with a scale and shift of channels.
_TRANSPARENT = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
)


def _tensors(structure) -> Iterator[dict]:
    """Yields the description of every tensor in a part of a config."""
    if isinstance(structure, dict) and "keras_history" in structure:
        yield structure
    elif isinstance(structure, dict | list):
        for part in structure.values() if isinstance(structure, dict) else structure:
            yield from _tensors(part)


def _references(calls: list) -> Iterator[list]:
    """Yields `[name, call, output]` of every tensor that some calls of layers read."""
    return (tensor["keras_history"] for tensor in _tensors(calls))


def _subsamples(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer only keeps every n-th pixel."""
    return isinstance(layer, keras.layers.MaxPooling2D) and layer.pool_size == (1, 1) and layer.strides != (1, 1)


def _affine(layer: keras.layers.Layer, shape: list[int | None]) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the scale and shift of each channel, in float64, or None if the layer does something else.

    Args:
        layer: Any layer.
        shape: Shape of its input, including the batch.
    """
    if isinstance(layer, keras.layers.BatchNormalization) and layer.axis in (-1, len(shape) - 1):
        mean, variance = _float64(layer.moving_mean), _float64(layer.moving_variance)
        scale = (_float64(layer.gamma) if layer.scale else 1.0) / np.sqrt(variance + layer.epsilon)
        return scale, (_float64(layer.beta) if layer.center else 0.0) - mean * scale
    if isinstance(layer, keras.layers.Rescaling):
        channels = shape[-1:]
        scale, shift = (np.asarray(value, "float64").reshape(-1) for value in (layer.scale, layer.offset))
        if {scale.size, shift.size} <= {1, *channels}:
            return np.broadcast_to(scale, channels), np.broadcast_to(shift, channels)
    return None


def _range(norm: keras.layers.BatchNormalization) -> np.ndarray:
    """Returns a bound for nearly all absolute input values of a batch norm's channels: three standard deviations."""
    return abs(_float64(norm.moving_mean)) + 3 * np.sqrt(_float64(norm.moving_variance) + norm.epsilon)


def _float64(weight) -> np.ndarray:
    return weight.numpy().astype("float64")
