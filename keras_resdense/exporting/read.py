"""Reads a model of any format."""

from __future__ import annotations

from pathlib import Path

import keras

from keras_resdense.exporting.exporter import Runner
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.files import check_digests
from keras_resdense.networks.model import load_model

#: The file that is read from a run's folder.
MODEL_FILE = EXPORTERS["keras"].file_name
#: Formats by their files' suffixes.
_KINDS = {".keras": "keras", ".tflite": "tflite", ".onnx": "onnx", ".mlpackage": "coreml"}


def load_keras(path: Path) -> keras.Model:
    """Loads a `.keras` file, or that of a run, as `keras_resdense.load_model` does, without compiling the model.

    Raises:
        ValueError: If the file does not exist, or its SHA-256 differs from that in `{path}.json`.
    """
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"There is no {path}.")
    check_digests(path)
    return load_model(path, compile=False)


def load_runner(path: Path) -> tuple[Runner, Path]:
    """Loads a model of any format.

    Args:
        path: Folder of a run, `.keras`, SavedModel, `.tflite`, `.onnx`, `.mlpackage` or folder of OpenVINO.

    Returns:
        A function from images of pixels 0–255 to probabilities, and the path of the file.

    Raises:
        ValueError: If the path is none of these, is damaged, or does not take images of one size.
    """
    if (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    kind = _KINDS.get(path.suffix)
    if path.is_dir() and kind is None:
        kind = "openvino" if (path / "model.xml").is_file() else "saved_model"
    if not path.exists() or kind is None:
        what = "is not a model" if path.exists() else "does not exist"
        raise ValueError(
            f"{path} {what}: it must be a run's folder, a .keras, a .tflite, an .onnx, an .mlpackage, a SavedModel "
            "or a folder of OpenVINO."
        )
    run = EXPORTERS[kind].read(path)
    if [type(side) for side in run.shape] != [int] * 3:
        raise ValueError(f"{path} takes inputs of shape {run.shape}, not images (height, width, channels) of one size.")
    return run, path
