"""Files of a run: its results, its history and the environment that it ran in."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_resdense
from keras_resdense.data.contract import LABELS_FILE, as_files
from keras_resdense.files import staged, write_text
from keras_resdense.training import card
from keras_resdense.training.recipes import Recipe, Settings

#: File that marks a run as complete.
RESULTS_FILE = "run.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a training.

    Attributes:
        recipe: Its recipe.
        settings: Its settings.
        class_names: Names of the classes in the order of their indices.
        image_shape: Shape of the images that the model takes, `(height, width, channels)`.
        history: One row of measurements for each epoch.
        minutes: Time from the start, or the last resumption, to the end of evaluation.
        accuracy: Share of the held-out images that are classified correctly.
        loss: Mean cross-entropy on the held-out images.
        confusion: Confusion matrix of the held-out images `(classes, classes)`, with a row for each true class.
        weights_origin: Origin of the weights that it started from, see `keras_resdense.networks.model.Model`.
    """

    recipe: Recipe
    settings: Settings
    class_names: Sequence[str]
    image_shape: tuple[int, int, int]
    history: Sequence[Mapping[str, float]]
    minutes: float
    accuracy: float
    loss: float
    confusion: np.ndarray
    weights_origin: Mapping[str, str] | None = None


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes a row for each epoch."""
    with staged(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def write(folder: Path, results: Results) -> None:
    """Writes all files about a run after its exports, and last the file that marks it as complete."""
    write_text(folder / LABELS_FILE, as_files(None, results.class_names)[LABELS_FILE])
    write_text(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    card.draw_curves(folder / "curves.png", results.history)
    card.draw_confusion(folder / "confusion.png", results.confusion, results.class_names)
    numbers = {
        name: getattr(results, name) for name in ("accuracy", "loss", "minutes", "image_shape", "weights_origin")
    }
    numbers["confusion"] = results.confusion.tolist()
    card.write_card(folder, numbers)
    write_text(folder / RESULTS_FILE, json.dumps(numbers) + "\n")


def environment() -> dict[str, Any]:
    """Returns the versions and devices that a run depends on."""
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "keras_resdense": keras_resdense.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "devices": [device.name for device in tf.config.list_logical_devices()],
    }
