"""Quantisation-aware training: networks that round like their quantised files, and can be trained.

The scheme is that of 1712.05877, section 3, on the graph that phones run (`rewrite_for_phones`). Its batch norms
are folded, so their statistics are frozen. Values are rounded to quantisation steps where LiteRT's kernels round:

* Kernels are rounded symmetrically, with one step per output channel. The largest weight is the last step.
* The step of a bias is that of the inputs times that of the kernel.
* The output of an operation and its fused ReLU has 256 steps between a smallest and a largest value. These are moving
  averages over the batches.
* All tensors of a concatenation, and input and output of an average pooling, share their steps.
* Pixels have steps of 1, and gates steps of 1/256. Probabilities have steps of 1/256, at inference only, because
  gradients vanish where they are rounded to 0.

Sums are those of whole numbers, as in LiteRT, so that a file computes what its network does, bit for bit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_resdense.exporting.exporter import Exporter, check_images_fit, relative_noise
from keras_resdense.exporting.folding import in_full_precision, rewrite_for_phones
from keras_resdense.exporting.pixels import are_pixels, from_pixels, of_pixels, to_pixels
from keras_resdense.exporting.retracing import follow, retraced
from keras_resdense.exporting.rounding import (
    PIXELS,
    SHARES,
    FakeQuantise,
    RoundedAdd,
    RoundedConv2D,
    RoundedDense,
    RoundedDepthwiseConv2D,
    RoundedKernel,
    RoundedMultiply,
    fraction_of_step,
    rounded_to_fraction,
)
from keras_resdense.graph import calls

#: Relative noise that any format of a quantisation-aware model may have. Runtimes add numbers in different orders, and
#: where sums differ in the last digit, a value may be rounded to the next step.
ROUNDED_TOLERANCE = 0.1
#: Replacements of Keras's layers with kernels.
_ROUNDED = {
    keras.layers.Conv2D: RoundedConv2D,
    keras.layers.DepthwiseConv2D: RoundedDepthwiseConv2D,
    keras.layers.Dense: RoundedDense,
}
#: Replacements of Keras's layers that merge two tensors.
_MERGING = {keras.layers.Add: RoundedAdd, keras.layers.Multiply: RoundedMultiply}
_MERGED = {rounded: plain for plain, rounded in _MERGING.items()}
#: Layers that LiteRT fuses with a following ReLU.
_FUSING = (*_ROUNDED, *_MERGING)
#: Layers whose outputs have their own quantisation step.
_COMPUTING = (*_FUSING, keras.layers.GlobalAveragePooling2D, keras.layers.Activation)
#: Layers with the same steps for inputs and outputs, although an average has new values.
_AVERAGING = (keras.layers.AveragePooling2D,)
_PASSING = (
    *(keras.layers.ZeroPadding2D, keras.layers.MaxPooling2D, keras.layers.GlobalMaxPooling2D),
    *(keras.layers.Concatenate, keras.layers.Flatten, keras.layers.Reshape, keras.layers.Identity),
    *_AVERAGING,
)
_REGULARIZERS = {kind: "kernel_regularizer" for kind in _ROUNDED.values()} | {
    RoundedDepthwiseConv2D: "depthwise_regularizer"
}
#: Name of Keras's operation that rounds to a fixed range. Keras does not export this class.
_OPERATION = "FakeQuantWithMinMaxVars"
#: Batch size for measuring ranges.
_OBSERVED = 16
_SHARES_OF_ONE = (keras.activations.softmax, keras.activations.sigmoid)


def quantisation_aware(model: keras.Model, images: np.ndarray, *, weight_bits: int = 8) -> keras.Model:
    """Makes a trained network quantisation-aware: it computes in 8-bit integers like its `.tflite`, and can learn.

    Train it for one or a few epochs with `fit`, with about a hundredth of the original learning rate. Then
    `export(…, "tflite_int8")` needs no calibration images. The model has no weight decay, dropout or batch norm.

    Args:
        model: A trained classifier, functional or sequential. It is not changed.
        images: A few hundred training images, as the model takes them, for the initial ranges of activations.
        weight_bits: 8, or 4 for the kernels of convolutions. Depthwise convolutions and dense layers always have 8-bit
            weights.

    Returns:
        A functional model from RGB pixels 0–255 to the outputs of `model`, with an image contract. Its convolutions use
        the current `keras.config.dtype_policy()`.

    Raises:
        ValueError: If the model has an unsupported layer, does not take pixels, or is quantisation-aware already.
    """
    if is_quantisation_aware(model):
        raise ValueError(
            f"{model.name!r} is quantisation-aware already: train it further, or export it as tflite_int8."
        )
    if weight_bits not in (4, 8):
        raise ValueError(f"weight_bits is {weight_bits!r}; it must be 4 or 8.")
    check_images_fit(images, model, "images")
    contract = getattr(model, "image_contract", None)
    if contract is None and not are_pixels(images):
        raise ValueError(
            f"Such networks take pixels 0–255; these images go from {images.min():g} to {images.max():g}. "
            "Build the model with include_preprocessing=True, or set its image_contract."
        )
    plain = _apart(rewrite_for_phones(from_pixels(model, contract)))
    groups = _groups(plain)
    aware, quantisers = _rounded(plain, groups, weight_bits)
    limits = _limits(plain, groups, to_pixels(images, contract))
    for quantiser, starts in zip(quantisers, limits, strict=True):
        quantiser.start(starts)
    aware.image_contract, aware.class_names = of_pixels(contract), getattr(model, "class_names", None)
    return aware


def is_quantisation_aware(model: keras.Model) -> bool:
    """Returns whether a model was made by `quantisation_aware`, or from such a model by `settled`."""
    operations = getattr(model, "operations", ())
    return any(
        isinstance(operation, FakeQuantise) or type(operation).__name__ == _OPERATION for operation in operations
    )


def settled(model: keras.Model) -> keras.Model:
    """Converts a quantisation-aware model to Keras's own layers, with rounded kernels and fixed ranges.

    It computes the same and opens without this package, but cannot be trained. Any other model is returned as it is.
    """
    if not is_quantisation_aware(model):
        return model

    def settle(call: Any, args: tuple, kwargs: dict) -> Any:
        layer = call.operation
        if isinstance(layer, FakeQuantise):
            low, high = map(float, layer.limits())
            if kwargs.get("step"):
                return (high - low) / 255
            return keras.quantizers.fake_quant_with_min_max_vars(args[0], low, high)
        if type(layer) in _MERGED:
            return _MERGED[type(layer)](name=layer.name)(*args)
        if not isinstance(layer, RoundedKernel):
            return layer(*args, **kwargs)
        copy = _copy(layer, type(layer).__mro__[2])
        outputs = copy(args[0])
        copy.set_weights([keras.ops.convert_to_numpy(weight) for weight in layer.values(kwargs["step"])])
        if layer.weight_bits == 8:
            return outputs
        output_step = kwargs["output_step"]
        fraction = output_step * fraction_of_step(layer.sum_steps(kwargs["step"]) / output_step)
        # Keras's export to ONNX makes inputs of tensors.
        return rounded_to_fraction(outputs, keras.ops.convert_to_numpy(fraction))

    return retraced(in_full_precision(model), settle)


def tolerating_rounding(exporter: Exporter, model: keras.Model) -> Exporter:
    """Returns a format as a model is compared in it: of quantisation-aware models, the noise is measured."""
    if not is_quantisation_aware(model):
        return exporter
    tolerance = max(exporter.tolerance, ROUNDED_TOLERANCE)
    return dataclasses.replace(exporter, measure=relative_noise, tolerance=tolerance)


def has_4_bit_kernels(model: keras.Model) -> bool:
    """Returns whether the kernels of all convolutions of a `settled` model have 15 steps per output channel."""
    kernels = [layer.get_weights()[0] for layer in model.layers if type(layer) is keras.layers.Conv2D]
    if not kernels or not is_quantisation_aware(model):
        return False
    scaled = [7 * kernel / np.abs(kernel).max(axis=(0, 1, 2)).clip(1e-30) for kernel in kernels]
    return all(np.abs(kernel - kernel.round()).max() < 1e-3 for kernel in scaled)


def with_4_bit_kernels(model: keras.Model) -> Callable:
    """Returns a function that computes a `settled` model and from which TFLite's converter makes 4-bit kernels."""
    import tensorflow as tf

    kernels = {layer.name: layer.get_weights()[0] for layer in model.layers if type(layer) is keras.layers.Conv2D}

    def use(call: Any, args: tuple, kwargs: dict) -> Any:
        layer = call.operation
        if not isinstance(layer, keras.Layer) and type(layer).__name__ != _OPERATION:
            # The kernels of LiteRT round to fractions by themselves.
            return args[0]
        if layer.name not in kernels:
            return layer(*args, **kwargs)
        kernel = kernels[layer.name]
        most = np.abs(kernel).max(axis=(0, 1, 2)).clip(1e-30)
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -most, most, num_bits=4, narrow_range=True
        )
        outputs = layer.convolution_op(*args, kernel)
        return layer.activation(outputs + layer.bias if layer.use_bias else outputs)

    return partial(follow, model, use=use)


def _copy(layer: keras.Layer, kind: type[keras.Layer], changes: Mapping[str, Any] | None = None) -> keras.Layer:
    config = {key: value for key, value in layer.get_config().items() if key != "weight_bits"}
    return kind.from_config(config | dict(changes or {}))


def _apart(model: keras.Model) -> keras.Model:
    """Returns the same network without nested models and with activations as separate layers.

    Raises:
        ValueError: If it has an unsupported layer.
    """

    def part(call: Any, args: tuple, kwargs: dict) -> Any:
        layer = call.operation
        if not isinstance(layer, (*_COMPUTING, *_PASSING)):
            kinds = ", ".join(sorted({kind.__name__ for kind in (*_COMPUTING, *_PASSING)}))
            raise ValueError(
                f"{model.name!r} has {layer.name!r}, a {type(layer).__name__}, after rewriting for phones; "
                f"quantisation-aware training supports {kinds}."
            )
        if id(layer) not in parts:
            parts[id(layer)] = _parts(layer, taken)
        copy, *activations = parts[id(layer)]
        made = copy(*args, **kwargs)
        copy.set_weights(layer.get_weights())
        for activation in activations:
            made = activation(made)
        return made

    parts: dict[int, list[keras.Layer]] = {}
    taken: set[str] = set()
    return retraced(model, part)


def _parts(layer: keras.Layer, taken: set[str]) -> list[keras.Layer]:
    """Returns a copy of a layer and its activation as a separate layer, with new names."""
    names = itertools.chain([layer.name], (f"{layer.name}_{number}" for number in itertools.count(2)))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    if type(layer) not in _ROUNDED or layer.activation is keras.activations.linear:
        parts = [_copy(layer, type(layer), {"name": name})]
    else:
        activation = keras.layers.Activation(layer.activation, name=f"{name}_activation", dtype="float32")
        parts = [_copy(layer, type(layer), {"name": name, "activation": None}), activation]
    return parts


def _groups(model: keras.Model) -> list[list[Any]]:
    """Returns the rounded tensors of a model in groups that share their steps."""
    readers: dict[int, list[Any]] = {id(model.outputs[0]): [None]}
    for call in calls(model):
        for tensor in call.input_tensors:
            readers.setdefault(id(tensor), []).append(call.operation)
    groups: dict[int, list[Any]] = {}
    for call in calls(model):
        (output,), layer = call.output_tensors, call.operation
        if isinstance(layer, _PASSING):
            parts = {id(groups[id(tensor)]): groups[id(tensor)] for tensor in call.input_tensors}
            joined = [tensor for part in parts.values() for tensor in part]
            joined += [output] if isinstance(layer, _AVERAGING) else []
            groups = {key: joined if id(group) in parts else group for key, group in groups.items()}
            groups[id(output)] = joined
        else:
            fused = isinstance(layer, _FUSING) and [*map(_is_relu, readers.get(id(output), []))] == [True]
            groups[id(output)] = [output] if call.input_tensors and not fused else []
    return [*{id(group): group for group in groups.values() if group}.values()]


def _is_relu(layer: Any) -> bool:
    return getattr(layer, "activation", None) is keras.activations.relu


def _rounded(model: keras.Model, groups: list[list[Any]], weight_bits: int) -> tuple[keras.Model, list[FakeQuantise]]:
    """Returns a model with rounded kernels and values, and the layer that rounds each group."""
    quantisers, copies = [], {}
    for group in groups:
        makers = [tensor._keras_history.operation for tensor in group]
        of_one = len(group) == 1 and getattr(makers[0], "activation", None) in _SHARES_OF_ONE
        span = SHARES if of_one else None
        quantisers.append(FakeQuantise(len(group), span, name=f"{makers[-1].name}_steps"))
    places = {
        id(tensor): (quantiser, part)
        for quantiser, group in zip(quantisers, groups, strict=True)
        for part, tensor in enumerate(group)
    }

    def use(call: Any, args: tuple, kwargs: dict) -> Any:
        layer, source, (output,) = call.operation, call.input_tensors[0], call.output_tensors
        if source is model.inputs[0]:
            args = (pixels(args[0]), *args[1:])
        if layer.name not in copies:
            copies[layer.name] = _rounding_copy(layer, weight_bits)
        if isinstance(copies[layer.name], (RoundedKernel, *_MERGED)):
            steps = [sources[id(tensor)](args[0], step=True) for tensor in call.input_tensors]
            following, _ = places.get(id(output)) or places[id(activated[id(output)])]
            kwargs = {"step": steps if len(steps) > 1 else steps[0], "output_step": following(args[0], step=True)}
        made = copies[layer.name](*args, **kwargs)
        quantiser, part = places.get(id(output), (None, 0))
        # Layers that pass values on, such as a concatenation, have the steps of their inputs.
        sources[id(output)] = quantiser or sources[id(source)]
        return quantiser(made, part=part) if quantiser else made

    pixels = FakeQuantise(span=PIXELS, name="pixels_steps")
    activated = {id(call.input_tensors[0]): call.output_tensors[0] for call in calls(model) if _is_relu(call.operation)}
    sources = {id(model.inputs[0]): pixels}
    aware = retraced(model, use)
    for name, copy in copies.items():
        copy.set_weights(model.get_layer(name).get_weights())
    return aware, quantisers


def _rounding_copy(layer: keras.Layer, weight_bits: int) -> keras.Layer:
    kind = _ROUNDED.get(type(layer))
    if kind is None:
        return _copy(layer, _MERGING.get(type(layer), type(layer)))
    # As in `add_head`, the classifier keeps the precision of its weights.
    policy = keras.config.dtype_policy()
    dtype = policy.variable_dtype if kind is RoundedDense else policy.name
    # With folded batch norms, weight decay would shrink the outputs.
    copy = _copy(layer, kind, {"dtype": dtype, _REGULARIZERS[kind]: None})
    if kind is RoundedConv2D:
        copy.weight_bits = weight_bits
    return copy


def _limits(model: keras.Model, groups: list[list[Any]], images: np.ndarray) -> list[np.ndarray]:
    """Measures the smallest and the largest value of all tensors of each group, `(tensors, 2)`, on some images."""
    tensors = [tensor for group in groups for tensor in group]
    extremes = [extreme(tensor) for tensor in tensors for extreme in (keras.ops.min, keras.ops.max)]
    observer = keras.Model(model.inputs[0], extremes)
    found = [
        np.stack([keras.ops.convert_to_numpy(value) for value in observer(images[start : start + _OBSERVED])])
        for start in range(0, len(images), _OBSERVED)
    ]
    low, high = np.min(found, axis=0)[::2], np.max(found, axis=0)[1::2]
    borders = np.cumsum([len(group) for group in groups])[:-1]
    return np.split(np.stack([low, high], axis=-1), borders)
