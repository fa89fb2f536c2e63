"""Writes a run's model card, with metadata for the Hugging Face Hub and charts."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from keras_resdense.data.contract import LABELS_FILE
from keras_resdense.data.plan import Plan
from keras_resdense.files import write_text
from keras_resdense.training import recipes
from keras_resdense.training.recipes import RECIPE_FILE, Recipe, Settings

#: Largest number of classes whose names are shown in the card and the confusion matrix.
LABELLED_CLASSES = 30
#: Characters of a line of code.
CODE_WIDTH = 80
#: First words of the command of every training.
PROGRAM = ("keras-resdense", "train")
#: Multiple of the median loss beyond which a loss is an outlier, which would flatten the chart.
OUTLIER = 100


def write_card(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes the card of a run from its files, with a row for each existing export.

    Args:
        folder: Folder of the run.
        results: Contents of `run.json`.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    recipe, settings = recipes.read(folder / RECIPE_FILE)
    data, name = Path(recipe.data).name, folder.resolve().name
    class_names = (folder / LABELS_FILE).read_text(encoding="utf-8").splitlines()
    with open(folder / "history.csv", newline="") as file:
        history = list(csv.DictReader(file))
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    exports = [made for made in measured if {"format", "size", "difference"} <= made.keys()]
    described = ModelCardData(
        model_name=name,
        library_name="keras",
        pipeline_tag="image-classification",
        datasets=[] if Path(recipe.data).is_dir() else [data],
        tags=["keras", "keras-resdense", recipe.model],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=data,
                dataset_name=data,
                dataset_split="held out",
                metric_type="accuracy",
                metric_value=results["accuracy"],
            )
        ],
    )
    # In early runs, only the exports have the shape.
    height, width, channels = results.get("image_shape") or exports[0]["input_shape"][1:]
    plan = Plan(recipe=recipe, size=(height, width), classes=len(class_names))
    card = ModelCard.from_template(
        described,
        template_str=resources.files(__package__).joinpath("card.md.jinja").read_text(encoding="utf-8"),
        name=name,
        quoted=shlex.quote(name),
        recipe=recipe,
        data=data,
        classes=len(class_names),
        class_list=": " + ", ".join(class_names) if len(class_names) <= LABELLED_CLASSES else "",
        shape=(height, width, channels),
        preparation=plan.contract(channels).describe(),
        accuracy=results["accuracy"],
        loss=results["loss"],
        tested=sum(map(sum, results["confusion"])),
        exports=exports,
        command=in_lines([*command(recipe, settings), "--folder", ".", "--name", name]),
        again=in_lines([*PROGRAM, "--recipe", f"{name}/{RECIPE_FILE}", "--folder", ".", "--name", f"{name}_again"]),
        minutes=sum(float(row["seconds"]) for row in history) / 60,
        epochs=len(history),
        known=json.loads((folder / "environment.json").read_text()),
        recipe_file=RECIPE_FILE,
    )
    # Jinja leaves out the last line break.
    write_text(folder / "README.md", f"{card}\n")


def command(recipe: Recipe, settings: Settings) -> list[str]:
    """Returns the words of the command of a run, with all options that differ from the defaults."""
    words = list(PROGRAM)
    # Without --recipe, the command would choose a recipe for the folder.
    words += ["--recipe", "digits"] if Path(recipe.data).is_dir() else []
    for row in (recipe, settings):
        for field in dataclasses.fields(row):
            value = getattr(row, field.name)
            if value != field.default:
                words += _words(field.name.replace("_", "-"), value)
    return words


def in_lines(words: Sequence[str]) -> str:
    """Writes a command as a shell reads it, in lines that fit the column of a page, broken before options."""
    options: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            options.append([])
        options[-1].append(word)
    first, *rest = map(shlex.join, options)
    lines = [first]
    for option in rest:
        if len(f"{lines[-1]} {option} \\") <= CODE_WIDTH:
            lines[-1] += f" {option}"
        else:
            lines.append(f"    {option}")
    return " \\\n".join(lines)


def _words(option: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draws loss and accuracy by epoch to a file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[measure] for row in history], ".-", label="training")
        axes.plot(epochs, [row[f"val_{measure}"] for row in history], ".-", label="held out")
        axes.set(xlabel="epoch", ylabel=measure)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        if measure == "loss":
            _keep_readable(axes)
    figure.savefig(path, dpi=100)


def _keep_readable(axes: Any) -> None:
    """Uses a logarithmic axis for losses of several orders of magnitude, and names outliers in the title."""
    from matplotlib.ticker import ScalarFormatter

    points = np.concatenate([line.get_xydata() for line in axes.lines])
    losses = points[:, 1]
    within = losses <= OUTLIER * np.median(losses)
    if losses.min() > 0 and losses[within].max() > 10 * losses.min():
        axes.set_yscale("log")
        for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis_formatter(ScalarFormatter())
    if not within.all():
        axes.set_ylim(0.9 * losses.min(), 1.1 * losses[within].max())
        said = ", ".join(f"{loss:,.0f} in epoch {epoch:.0f}" for epoch, loss in points[~within])
        axes.set_title(f"not shown: {said}", size=9)


def draw_confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws a confusion matrix to a file. Colours are shares of a class, and numbers are images."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    few = len(class_names) <= LABELLED_CLASSES
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(shares, display_labels=_drawable(class_names) if few else None)
    display.plot(
        ax=axes,
        include_values=few,
        cmap="Blues",
        xticks_rotation="vertical",
        im_kw={"vmin": 0, "vmax": 1},
        text_kw={"size": 7},
    )
    axes.set(
        xlabel="predicted",
        ylabel="actual",
        title=f"{confusion.trace() / confusion.sum():.2%} of {confusion.sum():,} right",
    )
    if few:
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_parse_math(False)
        for text, count in zip(display.text_.flat, confusion.flat, strict=True):
            text.set_text(str(count) if count else "")
    else:
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def _drawable(names: Sequence[str]) -> list[str]:
    """Replaces names that Matplotlib's font cannot draw by their numbers."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return [
        name if all(ord(letter) in known for letter in name) else f"class {number}" for number, name in enumerate(names)
    ]
