"""Files of a run: its results, its history and the environment that it ran in."""

from __future__ import annotations

import csv
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

#: File that marks a run as complete.
RESULTS_FILE = "run.json"


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes a row for each epoch."""
    with staged(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def write(
    folder: Path, results: Mapping[str, Any], history: Sequence[Mapping[str, float]], class_names: Sequence[str]
) -> None:
    """Writes all files about a run after its exports, and last the file that marks it as complete.

    Args:
        folder: Folder of the run.
        results: Contents of `run.json`: `accuracy`, `loss` and `confusion` as in `Evaluation`, the `minutes` since the
            start or the last resumption, the `image_shape` that the model takes, and the `weights_origin` of `Model`.
        history: One row of measurements for each epoch.
        class_names: Names of the classes in the order of their indices.
    """
    write_text(folder / LABELS_FILE, as_files(None, class_names)[LABELS_FILE])
    write_text(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    card.draw_curves(folder / "curves.png", history)
    card.draw_confusion(folder / "confusion.png", np.array(results["confusion"]), class_names)
    card.write_card(folder, results)
    write_text(folder / RESULTS_FILE, json.dumps(results) + "\n")


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
