"""Keras's own format, `.keras`, with the image contract and the class names."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import keras

from keras_resdense.data.contract import attach, attached
from keras_resdense.exporting import folding
from keras_resdense.exporting.exporter import BATCH, Exporter, Extras, Runner


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainKeras(Exporter):
    """Keras's own format, which opens in plain Keras and keeps batch norms for further training."""

    what = "a Keras model"

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

    def open(self, path: Path, threads: int | None) -> Runner:
        model = folding.in_full_precision(keras.saving.load_model(path, compile=False))
        return Runner(model.predict_on_batch, model.input_shape[1:], BATCH, *attached(path))
