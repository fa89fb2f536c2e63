"""Keras's own format, `.keras`, with the image contract and the class names."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import keras

from keras_resdense.data.contract import attach, attached
from keras_resdense.exporting import folding
from keras_resdense.exporting.exporter import Exporter, Extras
from keras_resdense.exporting.inference import InferenceModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainKeras(Exporter):
    """Keras's own format, which opens in plain Keras and keeps batch norms for further training."""

    what = "a Keras model"
    runtime = "tensorflow"

    def target(self, path: Path) -> Path:
        if path.suffix != ".keras":
            raise ValueError(f"{path} must end in .keras, because Keras chooses its format by the suffix.")
        return path

    def owns(self, path: Path) -> bool:
        return zipfile.is_zipfile(path) and "config.json" in zipfile.ZipFile(path).namelist()

    def prepare(self, model: keras.Model) -> keras.Model:
        return model

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
        # `model.save` of this package would attach the model's own class names, which may be older than these.
        keras.saving.save_model(model, path)
        attach(path, extras.files())

    def open(self, path: Path, threads: int | None) -> InferenceModel:
        model = folding.in_full_precision(keras.saving.load_model(path, compile=False))
        contract, names = attached(path)
        return dataclasses.replace(in_keras(model), image_contract=contract, class_names=names)


def in_keras(model: keras.Model) -> InferenceModel:
    """Returns a function that computes a model in Keras."""
    return InferenceModel(
        compute=model.predict_on_batch,
        input_shape=model.input_shape,
        output_shape=model.output_shape,
        dtype=model.inputs[0].dtype,
        image_contract=getattr(model, "image_contract", None),
        class_names=getattr(model, "class_names", None),
    )
