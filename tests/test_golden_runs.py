"""Runs made by an earlier version are read, used and resumed as before."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from keras_resdense import runs
from keras_resdense.networks import zoo
from keras_resdense.training import recipes, train
from tests.tiny import outcome

RUNS = Path(__file__).parent / "golden" / "runs"


@pytest.mark.parametrize("file", [".", "model.tflite"])
def test_a_complete_run_predicts_and_is_evaluated_as_before(file, tmp_path):
    results = json.loads((RUNS / "complete" / "run.json").read_text())
    measured = runs.evaluate(RUNS / "complete" / file)
    assert measured["accuracy"] == pytest.approx(results["accuracy"])
    assert measured["loss"] == pytest.approx(results["loss"], rel=1e-4)
    Image.fromarray((load_digits().images[0] * 255 / 16).astype("uint8")).save(tmp_path / "zero.png")
    ((_, best),) = runs.predict(RUNS / "complete" / file, [tmp_path / "zero.png"], top=10)
    assert {name for name, _ in best} == set(map(str, range(10)))


def test_an_interrupted_run_is_resumed(tmp_path, monkeypatch):
    row = dataclasses.replace(zoo.VARIANTS["resnet20"], depths=(1, 1), filters=(4, 8))
    monkeypatch.setitem(zoo.VARIANTS, "tiny", row)
    monkeypatch.setattr(train, "FORMATS", ())
    shutil.copytree(RUNS / "interrupted", tmp_path / "interrupted")
    recipe, settings = recipes.read(tmp_path / "interrupted" / "recipe.json")
    run = train.train(recipe, settings, folder=str(tmp_path), name="interrupted")
    (expected, before), (found, after) = outcome(RUNS / "complete"), outcome(run.folder)
    # The first two epochs were not trained again. In the third, augmentation draws other numbers than it did.
    assert len(after) == 3 and after[:2] == before[:2]
    assert float(after[2]["loss"]) == pytest.approx(float(before[2]["loss"]), rel=0.05)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=0.3)
