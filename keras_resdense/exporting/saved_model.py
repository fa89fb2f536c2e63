"""TensorFlow's SavedModel."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_resdense.data.contract import ImageContract, from_files
from keras_resdense.exporting.endpoints import files_endpoint, freeze, pixels_endpoint, write_endpoints
from keras_resdense.exporting.exporter import Exporter, Extras, holds_only
from keras_resdense.exporting.inference import InferenceModel
from keras_resdense.exporting.warm_up import write_requests

#: Files and folders of a SavedModel.
_PARTS = ("saved_model.pb", "variables", "assets", "assets.extra", "fingerprint.pb", "keras_metadata.pb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedModel(Exporter):
    """TensorFlow's format, for TensorFlow Serving and, as a `keras.layers.TFSMLayer`, for Keras.

    The signature `serving_default` takes `images`, a batch of the model's inputs, and returns `outputs`.
    `serve_images` takes `encoded`, a batch of JPEG or PNG files as strings. It prepares each image as the model's image
    contract says or, without a contract, resizes it to the model's size. It exists for 1 and 3 channels, if the
    contract or the model fixes the size. It returns `outputs` and `valid`, which is false for a file that is damaged or
    not a JPEG or PNG; the outputs for such a file are NaN.

    `assets` holds the image contract and the class names, and `assets.extra` requests that TensorFlow Serving warms up
    with.

    Attributes:
        frozen: Whether weights are constants of the graph. TensorFlow reorders constants once, but variables for every
            batch, so small batches are faster. Constants take about twenty times their size in memory.
        version: Number of the subfolder that is written, as TensorFlow Serving expects; None for the path itself.
        strict: Whether a file that is not an image makes the entire request to `serve_images` fail. There is no `valid`
            then.
    """

    what = "a SavedModel with the signature serving_default"
    runtime = "tensorflow"

    frozen: bool = False
    version: int | None = None
    strict: bool = False

    def check(self, model: keras.Model, extras: Extras) -> None:
        if self.version is not None and self.version < 1:
            raise ValueError(f"version is {self.version}; it must be at least 1, or None.")

    def target(self, path: Path) -> Path:
        return path if self.version is None else path / str(self.version)

    def owns(self, path: Path) -> bool:
        return holds_only(path, _PARTS)

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
        import tensorflow as tf

        compute = freeze(model) if self.frozen else partial(model, training=False)
        endpoints = {"serving_default": pixels_endpoint(model, compute)}
        requests = {"serving_default": {"images": extras.images[:1]}}
        contract = _contract(model, extras)
        if contract and contract.channels in (1, 3):
            endpoints["serve_images"] = files_endpoint(model, compute, contract, self.strict)
            pixels = np.clip(np.rint(extras.images[0]), 0, 255).astype("uint8")
            requests["serve_images"] = {"encoded": [tf.io.encode_png(pixels).numpy()]}
        write_endpoints(endpoints, path)
        write_requests(path, requests)
        (path / "assets").mkdir(exist_ok=True)
        for name, text in extras.files().items():
            (path / "assets" / name).write_text(text, encoding="utf-8")

    def open(self, path: Path, threads: int | None) -> InferenceModel:
        import tensorflow as tf

        artefact = tf.saved_model.load(str(path))
        signature = artefact.signatures["serving_default"]
        source, target = signature.structured_input_signature[1]["images"], signature.structured_outputs["outputs"]

        def compute(images: np.ndarray) -> np.ndarray:
            # The signature does not keep its variables alive, so it is looked up in the artefact.
            return artefact.signatures["serving_default"](images=tf.constant(images))["outputs"].numpy()

        contract, names = from_files(path / "assets")
        return InferenceModel(
            compute=compute,
            input_shape=tuple(source.shape),
            output_shape=tuple(target.shape),
            dtype=source.dtype.name,
            image_contract=contract,
            class_names=names,
        )


def _contract(model: keras.Model, extras: Extras) -> ImageContract | None:
    """Returns how `serve_images` prepares an image; None if the size is not known."""
    _, *size, channels = model.input_shape
    if extras.contract or None in size:
        return extras.contract
    return ImageContract(size=tuple(size), channels=channels)
