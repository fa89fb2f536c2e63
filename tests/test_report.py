"""The files of a run: pictures and a card for any class names, and metadata for the hub."""

import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image

import keras_resdense
from keras_resdense.data.plan import Plan
from keras_resdense.training import card, recipes, report
from keras_resdense.training.recipes import Recipe, Settings

NAMES = ("Katze", "狗", "$5", "a$b$c^", "پرنده")
RECIPE, SETTINGS = Recipe(weights="my weights.keras"), Settings(seed=7)
MEASURES = ("loss", "accuracy", "val_loss", "val_accuracy")


def history(*losses):
    rows = [dict.fromkeys(MEASURES, 0.5) | {"epoch": epoch, "seconds": 30.0} for epoch in range(1, len(losses) + 1)]
    return [row | {"val_loss": loss} for row, loss in zip(rows, losses, strict=True)]


@pytest.fixture
def folder(tmp_path):
    """Returns the folder of a complete run of one epoch."""
    rows = history(0.5)
    (tmp_path / "recipe.json").write_text(recipes.describe(RECIPE, SETTINGS))
    report.write_history(tmp_path / "history.csv", rows)
    confusion = np.diag([2, 2, 2, 2, 0]) + np.eye(5, k=1, dtype=int)[::-1]
    results = {"accuracy": 0.8, "loss": 0.25, "image_shape": (24, 32, 3), "confusion": confusion.tolist()}
    report.write(tmp_path, results, rows, NAMES)
    return tmp_path


def test_a_run_is_described_whatever_its_classes_are_called(folder):
    """Warnings are errors here, so no letter is missing in the pictures or interpreted as mathematics."""
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(NAMES)
    for name in ("curves.png", "confusion.png"):
        with Image.open(folder / name) as image:
            assert len(image.convert("L").getcolors()) > 10
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "5 classes: Katze, 狗, $5, a$b$c^, پرنده (" in text and "24 × 32 pixels with 3 channels" in text
    assert Plan(recipe=RECIPE, size=(24, 32), classes=5).contract(3).describe() in text
    made = f"keras-resdense train --weights 'my weights.keras' --seed 7 --folder . --name {folder.name}"
    assert f"```shell\n{made}\n```" in text.replace(" \\\n    ", " ")
    assert "took 0.5 minutes for 1 epoch on" in text
    assert f"keras_resdense {keras_resdense.__version__}, Keras" in text


def test_the_hub_reads_the_card(folder):
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("keras", "image-classification", None)
    assert data.datasets == ["digits"] and "resnet20" in data.tags and data.model_name == folder.name
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("accuracy", 0.8, "digits")


def test_names_that_the_font_lacks_become_numbers():
    assert card._drawable(NAMES)[:4] == ["Katze", "class 1", "$5", "a$b$c^"]


@pytest.fixture
def axes_of(monkeypatch, tmp_path):
    """Returns a function that draws the curves of some losses, and returns the axes of the loss."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0]))

    def draw(*losses):
        card.draw_curves(tmp_path / "curves.png", history(*losses))
        return drawn.pop()

    return draw


def test_curves_survive_an_outlier(axes_of):
    axes = axes_of(0.9, 1007, 0.6, 0.5, 0.4)
    bottom, top = axes.get_ylim()
    assert 0.3 < bottom < 0.4 and 0.9 < top < 1.1
    assert axes.get_title() == "not shown: 1,007 in epoch 2"


def test_curves_of_many_magnitudes_are_logarithmic(axes_of):
    assert axes_of(0.9, 0.6, 0.5).get_yscale() == "linear"
    axes = axes_of(2.3, 0.5, 0.05, 0.01)
    assert axes.get_yscale() == "log" and axes.get_ylim()[1] > 2.3 and not axes.get_title()
