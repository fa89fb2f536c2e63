"""Using what was trained: a run's folder, or a model of any format, on images or held-out data."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_resdense import pipeline, recipes
from keras_resdense.data import load_data
from keras_resdense.export import EXPORTERS, Runner
from keras_resdense.folder import SUFFIXES, decode_image
from keras_resdense.recipes import RECIPE_FILE, Recipe, Settings

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
        ValueError: If a file is no image, or there is none, or the names are not those of the model's classes.
    """
    if top < 1:
        raise ValueError(f"top is {top}; it must be at least 1.")
    run, path = load_runner(model)
    beside = path.parent / "labels.txt"
    labels = labels or (beside if beside.is_file() else None)
    names = labels.read_text(encoding="utf-8").splitlines() if labels else None
    plan = _plan(_described(path)[0], run.shape, classes=1)
    files = [file for given in images for file in _files(given)]
    if not files:
        raise ValueError(f"There are no images in {', '.join(map(str, images))}.")
    for file in files:
        try:
            pixels = decode_image(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if run.shape[-1] == 1:
            pixels = np.rint(pixels @ [0.299, 0.587, 0.114]).astype("uint8")[..., None]
        prepared = pipeline.test_image(pixels, plan)
        probabilities = run(prepared.numpy()[None])[0]
        if names and len(names) != len(probabilities):
            raise ValueError(f"{labels} has {len(names)} names for {len(probabilities)} classes of {path}.")
        best = np.argsort(-probabilities)[:top]
        yield file, [(names[number] if names else str(number), float(probabilities[number])) for number in best]


def evaluate(
    model: Path, data: str | None = None, data_dir: str | None = None, on_bad_image: str | None = None
) -> dict[str, float]:
    """Measures a model on the images held out of a data set.

    Args:
        model: As `load_runner` takes it.
        data: As `load_data` takes it; default what its run was trained on.
        data_dir: Folder where TFDS keeps its data sets; default that of its run.
        on_bad_image: As `load_data` takes it; default that of its run, or "error".

    Returns:
        "accuracy", "loss" and "images", their number.

    Raises:
        ValueError: If no data set is named, and there is no run to look it up, or the data do not fit the model.
    """
    run, path = load_runner(model)
    recipe, settings = _described(path)
    if data is None and recipe is None:
        raise ValueError(f"{path} is no part of a run that names its data: say --data.")
    name = data or recipe.data
    loaded = load_data(name, data_dir or settings.data_dir or None, on_bad_image or settings.on_bad_image)
    plan = _plan(recipe, run.shape, len(loaded.class_names))
    batches, steps = pipeline.test_batches(loaded.test, plan)
    right, loss = 0, 0.0
    for images, classes, weights in itertools.islice(batches.as_numpy_iterator(), steps):
        if images.shape[-1] != run.shape[-1]:
            raise ValueError(
                f"{path} takes images of {run.shape[-1]} channels; those of {name} have {images.shape[-1]}."
            )
        probabilities, labels = run(images[weights > 0]), classes[weights > 0].argmax(-1)
        if probabilities.shape[-1] != plan.classes:
            raise ValueError(f"{path} knows {probabilities.shape[-1]} classes; {name} has {plan.classes}.")
        right += int((probabilities.argmax(-1) == labels).sum())
        loss -= float(np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-7)).sum())
    return {"accuracy": right / loaded.test.count, "loss": loss / loaded.test.count, "images": loaded.test.count}


def _described(path: Path) -> tuple[Recipe | None, Settings]:
    """Returns recipe and settings of the run that a file is part of, if it is."""
    described = path.parent / RECIPE_FILE
    return recipes.read(described) if described.is_file() else (None, Settings())


def _plan(recipe: Recipe | None, shape: tuple[int, ...], classes: int) -> pipeline.Plan:
    return pipeline.Plan(recipe=recipe or Recipe(), size=shape[:2], classes=classes)


def _files(given: Path) -> list[Path]:
    if given.is_dir():
        return sorted(path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not given.is_file():
        raise ValueError(f"There is no {given}.")
    return [given]
