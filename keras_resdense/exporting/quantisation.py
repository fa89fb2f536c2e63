"""Quantised values of TFLite models, and the signal-to-noise ratio of their layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def quantise(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Quantises values for a tensor of a TFLite model by the interpreter's `details`."""
    dtype, scales = details["dtype"], details["quantization_parameters"]["scales"]
    if not scales.size:
        return values.astype(dtype)
    steps = np.round(values / scales) + details["quantization_parameters"]["zero_points"]
    return np.clip(steps, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


def dequantise(steps: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Returns the float32 values of a TFLite model's quantised tensor."""
    scales = details["quantization_parameters"]["scales"]
    if not scales.size:
        return steps.astype("float32")
    return ((steps.astype("float32") - details["quantization_parameters"]["zero_points"]) * scales).astype("float32")


def signal_to_noise(path: str | Path, reference: str | Path, images: np.ndarray) -> dict[str, float]:
    """Measures where the noise of a quantised TFLite model arises.

    The noise of a layer's output is its difference from the output in the float model, including the noise of all
    earlier layers. If the ratio drops by many decibels at one layer, that layer is quantised badly.

    Args:
        path: Path of the quantised model ("tflite_dynamic", "tflite_int8", "tflite_int16x8").
        reference: Path of the float model ("tflite") of the same network and input size.
        images: Pixels 0–255, `(images, height, width, channels)`; a few dozen images are enough.

    Returns:
        Ratios in decibels, `10 · log10(signal / noise)` of the powers over all images, for each operation that has
        the same name in both files, in the order of computation. A ratio is infinite if nothing differs.

    Raises:
        ValueError: If the two files share less than half of their operations.
    """
    signal, noise = {}, {}
    quantised, exact = _Network(path), _Network(reference)
    for image in images:
        expected = exact.outputs(image)
        for name, values in quantised.outputs(image).items():
            if name in expected and values.shape == expected[name].shape:
                signal[name] = signal.get(name, 0.0) + float(np.square(expected[name]).sum())
                noise[name] = noise.get(name, 0.0) + float(np.square(values - expected[name]).sum())
    if 2 * len(signal) < len(exact.tensors):
        raise ValueError(
            f"{path} and {reference} have {len(signal)} of {len(exact.tensors)} operations in common: export both "
            "from the same model, the former as tflite_dynamic, tflite_int8 or tflite_int16x8."
        )
    return {name: 10 * float(np.log10(signal[name] / noise[name])) if noise[name] else np.inf for name in signal}


class _Network:
    """A TFLite model whose intermediate outputs can be read, because it runs without delegates."""

    def __init__(self, path: str | Path):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.interpreter = Interpreter(
            model_path=str(path),
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        self.interpreter.allocate_tensors()
        written = {index for operation in self.interpreter._get_ops_details() for index in operation["outputs"]}
        self.tensors = [details for details in self.interpreter.get_tensor_details() if details["index"] in written]

    def outputs(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs of all operations for an image, by their names without those of fused operations."""
        (source,) = self.interpreter.get_input_details()
        self.interpreter.set_tensor(source["index"], quantise(image[None], source))
        self.interpreter.invoke()
        return {
            details["name"].split(";")[0]: dequantise(self.interpreter.get_tensor(details["index"]), details)
            for details in self.tensors
        }
