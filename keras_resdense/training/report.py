"""What a run leaves behind for people: history, curves, confusion matrix, environment and card."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_resdense.data.batches import evaluation_batches
from keras_resdense.data.contract import ImageContract
from keras_resdense.data.examples import Examples
from keras_resdense.exporting.export import Export
from keras_resdense.files import replacing
from keras_resdense.training.recipes import RECIPE_FILE, Recipe, Settings

#: The file that makes a run complete.
RESULTS_FILE = "run.json"
#: Classes up to which they are named in card and confusion matrix.
LABELLED_CLASSES = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What a training came to.

    Attributes:
        recipe: How it was made.
        settings: How that was carried out.
        class_names: In the order of the classes' numbers.
        image_shape: Of the images that the model takes, `(height, width, channels)`.
        history: A row of measurements for each epoch.
        minutes: From the start, or the last resumption, to the end of evaluation.
        accuracy: Share of the held-out images classified rightly.
        loss: Mean cross-entropy on them.
        confusion: Held-out images `(classes, classes)`, counted by their class and the predicted one.
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


def predict(model: keras.Model, examples: Examples, contract: ImageContract, classes: int) -> dict:
    """Evaluates a model on all images held out.

    Returns:
        "image_shape", "accuracy", "loss" and "confusion", as in `Results`.
    """
    batches, steps = evaluation_batches(examples, contract, classes)
    confusion, loss = np.zeros((classes, classes), int), 0.0
    for images, labels, weights in itertools.islice(batches.as_numpy_iterator(), steps):
        probabilities, labels = model.predict_on_batch(images)[weights > 0], labels[weights > 0].argmax(-1)
        np.add.at(confusion, (labels, probabilities.argmax(-1)), 1)
        loss -= np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-7)).sum()
    count = confusion.sum()
    return {
        "image_shape": model.input_shape[1:],
        "accuracy": float(confusion.trace() / count),
        "loss": float(loss / count),
        "confusion": confusion,
    }


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes a row for each epoch."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def write(folder: Path, results: Results, exports: Sequence[Export]) -> None:
    """Writes everything about a complete run; last the file that says that it is complete."""
    (folder / "labels.txt").write_text("\n".join(results.class_names) + "\n", encoding="utf-8")
    known = environment()
    (folder / "environment.json").write_text(json.dumps(known, indent=2) + "\n")
    _draw_curves(folder / "curves.png", results.history)
    _draw_confusion(folder / "confusion.png", results)
    (folder / "README.md").write_text(_card(folder.name, results, exports, known), encoding="utf-8")
    numbers = {"accuracy": results.accuracy, "loss": results.loss, "minutes": results.minutes}
    with replacing(folder / RESULTS_FILE) as temporary:
        temporary.write_text(json.dumps(numbers | {"confusion": results.confusion.tolist()}) + "\n")


def environment() -> dict:
    """Names the versions and devices that a run depends on."""
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "devices": [device.name for device in tf.config.list_logical_devices()],
    }


def command(recipe: Recipe, settings: Settings) -> str:
    """Writes the command that makes a run, with what differs from the defaults."""
    words = ["keras-resdense", "train"]
    for row in (recipe, settings):
        for field in dataclasses.fields(row):
            value = getattr(row, field.name)
            if value != field.default:
                words += _words(field.name.replace("_", "-"), value)
    return shlex.join(words)


def _words(option: str, value) -> list[str]:
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def _draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[measure] for row in history], ".-", label="training")
        axes.plot(epochs, [row[f"val_{measure}"] for row in history], ".-", label="held out")
        axes.set(xlabel="epoch", ylabel=measure)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def _draw_confusion(path: Path, results: Results) -> None:
    from matplotlib.figure import Figure

    shares = results.confusion / np.maximum(results.confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1, cmap="Blues"), label="share of the class")
    axes.set(xlabel="predicted", ylabel="actual", title=f"{results.accuracy:.2%} of {results.confusion.sum():,} right")
    if len(results.class_names) <= LABELLED_CLASSES:
        places, names = range(len(results.class_names)), _drawable(results.class_names)
        axes.set_xticks(places, names, rotation=90, parse_math=False)
        axes.set_yticks(places, names, parse_math=False)
        for actual, predicted in np.argwhere(results.confusion):
            colour = "white" if shares[actual, predicted] > 0.5 else "black"
            axes.text(
                predicted, actual, results.confusion[actual, predicted], ha="center", va="center", color=colour, size=7
            )
    figure.savefig(path, dpi=100)


def _drawable(names: Sequence[str]) -> list[str]:
    """Replaces names in scripts that Matplotlib's font lacks by their numbers."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return [
        name if all(ord(letter) in known for letter in name) else f"class {number}" for number, name in enumerate(names)
    ]


def _card(name: str, results: Results, exports: Sequence[Export], known: Mapping) -> str:
    recipe, (height, width, channels) = results.recipe, results.image_shape
    classes = len(results.class_names)
    named = ": " + ", ".join(results.class_names) if classes <= LABELLED_CLASSES else ""
    epochs, minutes = len(results.history), sum(row["seconds"] for row in results.history) / 60
    rows = "\n".join(
        f"| {made.format} | `{made.path.name}` | {made.size / 1e6:.2f} MB | {made.difference:.1e} |"
        f" {made.accuracy:.2%} |"
        for made in exports
    )
    return f"""# {name}

`{recipe.model}`, trained on `{recipe.data}`, tells {classes} classes apart{named} (`labels.txt`).
It takes images of {height} × {width} pixels with {channels} channel{"s" * (channels > 1)}, values 0–255, and gives a
probability for each class.

```shell
keras-resdense predict {shlex.quote(name)} photo.png
```

```python
import keras

model = keras.saving.load_model("{name}/model.keras")
probabilities = model.predict(images)  # from (images, {height}, {width}, {channels}) to (images, {classes})
```

## How good it is

{results.accuracy:.2%} of the {int(results.confusion.sum()):,} images held out are classified rightly; the mean
cross-entropy is {results.loss:.4f}.

![curves](curves.png)
![confusion matrix](confusion.png)

| format | file | size | largest difference | accuracy |
|---|---|---|---|---|
{rows}

The last two columns compare with the model on up to 1,024 of these images.

## How it was made

```shell
{command(recipe, results.settings)} --name {shlex.quote(name)}
```

That took {minutes:.1f} minutes for {epochs} epoch{"s" * (epochs > 1)} on {known["cores"]} cores and
{", ".join(known["devices"])}, with Keras {known["keras"]} and TensorFlow {known["tensorflow"]} (`environment.json`).
`keras-resdense train --recipe {RECIPE_FILE} --name again` repeats the run: `{RECIPE_FILE}` has the whole recipe.

`history.csv` has a row for each epoch; `last.weights.h5` are the weights of this model, `best.weights.h5` those of the
epoch that was best on the images held out, and therefore looks better than it is.
"""
