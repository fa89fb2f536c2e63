"""LiteRT's format, `.tflite`."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_resdense.data.contract import CONTRACT_FILE, LABELS_FILE, attached
from keras_resdense.exporting import folding, tflite_metadata
from keras_resdense.exporting.endpoints import pixels_endpoint, write_endpoints
from keras_resdense.exporting.exporter import BATCH, Exporter, Extras, check_images_fit
from keras_resdense.exporting.inference import InferenceModel
from keras_resdense.exporting.litert import open_interpreter
from keras_resdense.exporting.pixels import are_pixels, from_pixels, of_pixels, to_pixels
from keras_resdense.exporting.quantisation import dequantise, quantise
from keras_resdense.exporting.quantised_training import has_4_bit_kernels, is_quantisation_aware, with_4_bit_kernels

#: Allowed input types of each kind of file.
_PIXELS = {
    "float32": ("float32", "uint8"),
    "float16": ("float32", "uint8"),
    "dynamic": ("float32", "uint8"),
    "int8": ("uint8", "int8"),
    "int16x8": ("float32", "uint8"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFLite(Exporter):
    """LiteRT's format, for phones: built-in operations only, an input `images` and an output `outputs`.

    The file takes pixels 0–255. If the model's image contract normalises them, the file does this itself, because
    MediaPipe can't normalise each channel differently; its own contract says so. It contains the TFLite Metadata that
    MediaPipe Tasks' `ImageClassifier` requires, the class names as `labels.txt` and the image contract as
    `image_contract.json`.

    Attributes:
        kind: "float32"; "float16", for weights in half precision; "dynamic", for 8-bit weights; "int8", for 8-bit
            weights and activations; "int16x8", for 8-bit weights and 16-bit activations.
        batch: Images in a batch; None for any number.
        pixels: Type of the input: "float32", or "uint8" for bytes, as cameras return them. For the kind "int8" it is
            also the type of the output: "uint8", or "int8" for values shifted by −128.
        license: License of the model, such as "Apache-2.0".
    """

    what = "a TFLite model from images to one output"
    runtime = "litert"

    threads: tuple[int | None, ...] = (1, 2)
    kind: str = "float32"
    batch: int | None = 1
    pixels: str = "float32"
    license: str = ""

    @property
    def calibrated(self) -> bool:
        return self.kind in ("int8", "int16x8")

    def check(self, model: keras.Model, extras: Extras) -> None:
        if self.kind not in _PIXELS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(_PIXELS)}.")
        if self.pixels not in _PIXELS[self.kind]:
            allowed = " or ".join(map(repr, _PIXELS[self.kind]))
            raise ValueError(f"pixels is {self.pixels!r}; of the kind {self.kind} it must be {allowed}.")
        if None in model.input_shape[1:]:
            raise ValueError(
                f"TFLite needs images of one size; this model takes {model.input_shape}. "
                "Build it with a fixed input_shape and set its weights."
            )
        aware = is_quantisation_aware(model)
        if aware and self.kind != "int8":
            raise ValueError(
                f"{model.name!r} was trained for 8-bit integers, which {self.kind} does not use: export it "
                "as tflite_int8."
            )
        if self.calibrated and not aware and extras.calibration is None:
            raise ValueError(
                f"{self.kind} needs calibration images, a few hundred of the training data, to find the range of "
                "every activation: export(…, calibration=images)."
            )
        if self.pixels == "uint8" and extras.real and not _are_known_pixels(extras):
            raise ValueError(
                "Files whose input is uint8 take pixels 0–255, and these images are not: build the model with "
                "include_preprocessing=True, set its image_contract, or export it with another input (pixels=…)."
            )
        if self.calibrated and not aware:
            check_images_fit(extras.calibration, model, "calibration")
            _warn_of_calibration(extras.calibration, model)

    def owns(self, path: Path) -> bool:
        return path.is_file() and path.read_bytes()[4:8] == b"TFL3"

    def adapt(self, extras: Extras) -> Extras:
        contract, calibration = extras.contract, extras.calibration
        return dataclasses.replace(
            extras,
            images=to_pixels(extras.images, contract),
            calibration=None if calibration is None else to_pixels(calibration, contract),
            contract=of_pixels(contract),
        )

    def prepare(self, model: keras.Model) -> keras.Model:
        return folding.rewrite_for_phones(from_pixels(model, getattr(model, "image_contract", None)))

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
        written = self._convert(model, extras)
        metadata = self._metadata(model, extras)
        path.write_bytes(tflite_metadata.describe(written, ("images", "outputs"), metadata, extras.files()))

    def open(self, path: Path, threads: int | None) -> InferenceModel:
        interpreter = open_interpreter(path, threads or os.cpu_count())
        (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

        def compute(images: np.ndarray) -> np.ndarray:
            if len(images) != interpreter.get_input_details()[0]["shape"][0]:
                interpreter.resize_tensor_input(source["index"], images.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(source["index"], quantise(images, source))
            interpreter.invoke()
            return dequantise(interpreter.get_tensor(target["index"]), target)

        # Files of other programs may have no archive of associated files.
        contract, names = attached(path) if zipfile.is_zipfile(path) else (None, None)
        batch, shape = source["shape_signature"][0], tuple(source["shape"][1:].tolist())
        more = batch == -1 or (batch == 1 and _takes_more(compute, shape))
        return InferenceModel(
            compute=compute,
            input_shape=(None, *shape),
            output_shape=(None, *target["shape"][1:].tolist()),
            # LiteRT counts a batch's numbers in 32 bits.
            most=BATCH if more else int(batch),
            image_contract=contract,
            class_names=names,
        )

    def _convert(self, model: keras.Model, extras: Extras) -> bytes:
        import tensorflow as tf

        # Integer models quantise their input; the others cast it.
        pixels = "float32" if self.kind == "int8" else self.pixels
        with tempfile.TemporaryDirectory() as folder:
            compute = with_4_bit_kernels(model) if has_4_bit_kernels(model) else partial(model, training=False)
            write_endpoints({"serving_default": pixels_endpoint(model, compute, self.batch, pixels)}, Path(folder))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            if self.kind != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if self.kind == "float16":
                converter.target_spec.supported_types = [tf.float16]
            aware = is_quantisation_aware(model)
            if self.calibrated and not aware:
                examples = _spanning(extras.calibration) if self.pixels == "uint8" else extras.calibration
                examples = examples.astype(pixels)
                converter.representative_dataset = lambda: ([image[None]] for image in examples)
            if self.kind == "int8":
                if not aware:
                    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = tf.as_dtype(self.pixels)
            if self.kind == "int16x8":
                converter.target_spec.supported_ops = [
                    tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
                ]
            return converter.convert()

    def _metadata(self, model: keras.Model, extras: Extras) -> tflite_metadata.Table:
        last = model.layers[-1]
        while isinstance(last, keras.Model):
            last = last.layers[-1]
        softmax = getattr(last, "activation", None) is keras.activations.softmax
        about = {
            "name": model.name,
            "description": f"Classifies images into {model.output_shape[-1]} classes.",
            "license": self.license,
        }
        return tflite_metadata.model_metadata(
            {field: text for field, text in about.items() if text},
            tflite_metadata.image_input(
                "images",
                extras.contract.describe() if extras.contract else "Images.",
                model.input_shape[1:],
                _are_known_pixels(extras),
            ),
            tflite_metadata.class_output(
                "outputs",
                "Probability of each class." if softmax else "Score of each class.",
                LABELS_FILE if extras.class_names else None,
                softmax,
            ),
            {CONTRACT_FILE: "How an image becomes the input."} if extras.contract else {},
        )


def _takes_more(compute: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> bool:
    """Returns whether a file made for one image also takes two, with the same outputs as for each alone."""
    images = np.linspace(0, 255, 2 * math.prod(shape), dtype="float32").reshape((2, *shape))
    alone = np.concatenate([compute(image[None]) for image in images])
    try:
        return np.allclose(compute(images), alone, atol=1e-4 * max(1.0, abs(alone).max()))
    except (RuntimeError, ValueError):
        return False


def _are_known_pixels(extras: Extras) -> bool:
    """Returns whether the artefact takes pixels 0–255, judged by the contract or, without one, by the images."""
    given = [images for images in (extras.images, extras.calibration) if images is not None]
    return bool(extras.contract) or (extras.real and all(map(are_pixels, given)))


def _spanning(images: np.ndarray) -> np.ndarray:
    """Returns images that contain the values 0 and 255, so that the input's quantisation step is exactly 1."""
    images = images.copy()
    images[0, 0, 0], images[0, -1, -1] = 0, 255
    return images


def _warn_of_calibration(images: np.ndarray, model: keras.Model) -> None:
    constant = int((images.min(axis=(1, 2, 3)) == images.max(axis=(1, 2, 3))).sum())
    if constant:
        warnings.warn(f"{constant} of {len(images)} calibration images are of one colour.", stacklevel=4)
    outputs = model.predict(images, batch_size=BATCH, verbose=0)
    missing = set(range(outputs.shape[-1])) - set(outputs.argmax(-1).ravel().tolist())
    if missing:
        warnings.warn(
            f"The model predicts {len(missing)} of its {outputs.shape[-1]} classes for none of the {len(images)} "
            f"calibration images, such as class {min(missing)}, so the ranges of activations may be too small: pass "
            "more images.",
            stacklevel=4,
        )
