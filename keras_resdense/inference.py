"""Using what was trained: a run's folder, a `.keras`, a SavedModel or a `.tflite`, on images or held-out data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_resdense import pipeline, recipes
from keras_resdense.data import load_data
from keras_resdense.export import EXPORTERS, Runner
from keras_resdense.folder import SUFFIXES, decode_image
from keras_resdense.recipes import RECIPE_FILE, Recipe

#: What is read from a run's folder.
MODEL_FILE = EXPORTERS["keras"].file_name


def load_keras(path: Path) -> keras.Model:
    """Loads a `.keras`, or that of a run.

    Raises:
        ValueError: If there is none.
    """
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"There is no {path}.")
    return keras.saving.load_model(path, compile=False)


def load_runner(path: Path) -> tuple[Runner, Path, tuple[int, ...]]:
    """Loads a model of any format.

    Args:
        path: A run's folder, a `.keras`, a SavedModel or a `.tflite`.

    Returns:
        A function from images `(images, height, width, channels)` of pixels 0–255 to probabilities, the
        file itself, and the size of an image, `(height, width, channels)`.

    Raises:
        ValueError: If it is none of these.
    """
    if (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    kinds = {".keras": "keras", ".tflite": "tflite", "": "saved_model"}
    if not path.exists() or path.suffix not in kinds:
        raise ValueError(f"{path} is no run's folder, no .keras, no SavedModel and no .tflite.")
    return EXPORTERS[kinds[path.suffix]].read(path), path, _input_shape(path)


def _input_shape(path: Path) -> tuple[int, ...]:
    if path.suffix == ".keras":
        return tuple(load_keras(path).input_shape[1:])
    if path.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        return tuple(int(side) for side in Interpreter(str(path)).get_input_details()[0]["shape"][1:])
    import tensorflow as tf

    signature = tf.saved_model.load(str(path)).signatures["serving_default"].structured_input_signature[1]
    return tuple(signature["images"].shape[1:])


def predict(
    model: Path, images: Sequence[Path], labels: Path | None = None, top: int = 5
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Classifies images, prepared as in evaluation.

    Args:
        model: As `load_runner` takes it.
        images: Files, or folders of them.
        labels: File of class names, one a line; default `labels.txt` beside the model, or numbers.
        top: Classes to name of each image.

    Yields:
        Each image's file and its likeliest classes with their probabilities, the likeliest first.

    Raises:
        ValueError: If a file is no image, or there is none.
    """
    run, path, shape = load_runner(model)
    labels = labels or path.parent / "labels.txt"
    names = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else None
    plan = _plan(path, shape, classes=1)
    files = [file for given in images for file in _files(given)]
    if not files:
        raise ValueError(f"There are no images in {', '.join(map(str, images))}.")
    for file in files:
        try:
            pixels = decode_image(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if shape[-1] == 1:
            pixels = np.rint(pixels @ [0.299, 0.587, 0.114]).astype("uint8")[..., None]
        prepared = pipeline.test_image(pixels, plan)
        probabilities = run(prepared.numpy()[None])[0]
        best = np.argsort(-probabilities)[:top]
        yield file, [(names[number] if names else str(number), float(probabilities[number])) for number in best]


def evaluate(model: Path, data: str | None = None, data_dir: str | None = None) -> dict[str, float]:
    """Measures a model on the images held out of a data set.

    Args:
        model: As `load_runner` takes it.
        data: As `load_data` takes it; default what its run was trained on.
        data_dir: Folder where TFDS keeps its data sets.

    Returns:
        "accuracy", "loss" and "images", their number.

    Raises:
        ValueError: If no data set is named, and there is no run to look it up.
    """
    run, path, shape = load_runner(model)
    described = path.parent / RECIPE_FILE
    if data is None and not described.is_file():
        raise ValueError(f"{path} is no part of a run that names its data: say --data.")
    loaded = load_data(data or recipes.read(described)[0].data, data_dir)
    plan = _plan(path, shape, len(loaded.class_names))
    batches, steps = pipeline.test_batches(loaded.test, plan)
    right, loss = 0, 0.0
    for images, classes, weights in itertools.islice(batches.as_numpy_iterator(), steps):
        probabilities, labels = run(images[weights > 0]), classes[weights > 0].argmax(-1)
        right += int((probabilities.argmax(-1) == labels).sum())
        loss -= float(np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-7)).sum())
    return {"accuracy": right / loaded.test.count, "loss": loss / loaded.test.count, "images": loaded.test.count}


def _plan(path: Path, shape: tuple[int, ...], classes: int) -> pipeline.Plan:
    described = path.parent / RECIPE_FILE
    recipe = recipes.read(described)[0] if described.is_file() else Recipe()
    return pipeline.Plan(recipe=recipe, size=shape[:2], classes=classes)


def _files(given: Path) -> list[Path]:
    if given.is_dir():
        return sorted(path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not given.is_file():
        raise ValueError(f"There is no {given}.")
    return [given]
