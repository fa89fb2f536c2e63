"""Reads a model of any format."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import keras

from keras_resdense.exporting.formats import EXPORTERS, Runner

#: What is read from a run's folder.
MODEL_FILE = EXPORTERS["keras"].file_name


#: Formats by their files' suffixes; a folder is a SavedModel.
_KINDS = {".keras": "keras", ".tflite": "tflite", ".onnx": "onnx"}


def load_keras(path: Path) -> keras.Model:
    """Loads a `.keras`, or that of a run.

    Raises:
        ValueError: If there is none.
    """
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"There is no {path}.")
    return keras.saving.load_model(path, compile=False)


def load_runner(path: Path) -> tuple[Runner, Path]:
    """Loads a model of any format.

    Args:
        path: A run's folder, a `.keras`, a SavedModel, a `.tflite` or an `.onnx`.

    Returns:
        A function from images of pixels 0–255 to probabilities, and the file itself.

    Raises:
        ValueError: If it is none of these, is damaged, or does not take images of one size.
    """
    if (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    kind = "saved_model" if path.is_dir() else _KINDS.get(path.suffix)
    if not path.exists() or kind is None:
        raise ValueError(f"{path} is no run's folder, no .keras, no SavedModel, no .tflite and no .onnx.")
    if kind == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise ValueError(f"{path} needs onnxruntime: install keras-resdense[onnx].")
    run = EXPORTERS[kind].read(path)
    if [type(side) for side in run.shape] != [int] * 3:
        raise ValueError(f"{path} takes inputs of shape {run.shape}, not images (height, width, channels) of one size.")
    return run, path
