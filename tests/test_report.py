"""What a run leaves behind: pictures and a card for names of classes in any script."""

import numpy as np
from PIL import Image

from keras_resdense.training import report
from keras_resdense.training.recipes import Recipe, Settings

NAMES = ("Katze", "狗", "$5", "a$b$c^", "پرنده")


def results(epochs=1):
    history = [
        {"epoch": epoch + 1, "seconds": 30.0} | dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), 0.5)
        for epoch in range(epochs)
    ]
    return report.Results(
        recipe=Recipe(weights="my weights.keras"),
        settings=Settings(seed=7),
        class_names=NAMES,
        image_shape=(24, 32, 3),
        history=history,
        minutes=1.0,
        accuracy=0.8,
        loss=0.25,
        confusion=np.diag([2, 2, 2, 2, 0]) + np.eye(5, k=1, dtype=int)[::-1],
    )


def test_a_run_is_described_whatever_its_classes_are_called(tmp_path):
    """Warnings are errors here: no letter is missing from the pictures, and none is taken for mathematics."""
    report.write(tmp_path, results(), [])
    assert (tmp_path / "labels.txt").read_text(encoding="utf-8").splitlines() == list(NAMES)
    for name in ("curves.png", "confusion.png"):
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("L").getcolors()) > 10
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "5 classes apart: Katze, 狗, $5, a$b$c^, پرنده (" in card and "24 × 32 pixels with 3 channels" in card
    assert f"keras-resdense train --weights 'my weights.keras' --seed 7 --name {tmp_path.name}" in card
    assert "took 0.5 minutes for 1 epoch on" in card


def test_names_that_the_font_lacks_become_numbers():
    assert report._drawable(NAMES)[:4] == ["Katze", "class 1", "$5", "a$b$c^"]
