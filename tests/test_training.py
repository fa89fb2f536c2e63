"""From a recipe to a run in a folder of its own."""

import contextlib
import csv
import dataclasses
import fcntl
import json
import os
import re
import shlex
import struct
import sys
import termios
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resdense import progress, runs
from keras_resdense.progress import keras_verbosity
from keras_resdense.training import card, train
from keras_resdense.training.checkpoints import Position
from keras_resdense.training.recipes import Settings
from keras_resdense.training.run_progress import RunProgress
from tests.tiny import RECIPE, install, tiny  # noqa: F401


def history_of(run):
    return list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))


def weights_of(run):
    return [np.array(weight) for weight in run.model.get_weights()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run that has been exported to Keras's own format only."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setitem, patch.setattr)
        patch.setattr(train, "FORMATS", ("keras",))
        return train.train(RECIPE, folder=str(tmp_path_factory.mktemp("runs")))


def test_a_run_s_folder(run):
    assert run.folder.name == "tiny_digits"
    expected = {
        *("README.md", "confusion.png", "curves.png", "environment.json"),
        *(f"{name}.weights.h5{suffix}" for name in ("best", "last") for suffix in ("", ".sha256")),
        *("data.json", "history.csv", "labels.txt", "model.keras", "model.keras.json", "recipe.json", "run.json"),
    }
    assert {path.name for path in run.folder.iterdir()} - {"tensorboard"} == expected
    events = sorted((run.folder / "tensorboard" / "train").glob("events.out.tfevents.*"))
    logged = [event for path in events for event in tf.compat.v1.train.summary_iterator(str(path))]
    assert sum(value.tag == "epoch_loss" for event in logged for value in event.summary.value) == 3
    for name in ("curves.png", "confusion.png"):
        with Image.open(run.folder / name) as image:
            assert min(image.size) >= 400
    results = json.loads((run.folder / "run.json").read_text())
    assert results["accuracy"] == run.accuracy and sum(map(sum, results["confusion"])) == 360
    rows = history_of(run)
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(run.accuracy, abs=1e-6)
    assert float(rows[-1]["val_loss"]) == pytest.approx(results["loss"], abs=0.01)  # it holds the weight decay, too
    text = (run.folder / "README.md").read_text()
    assert f"{run.accuracy:.2%}" in text
    assert shlex.join(card.command(RECIPE, Settings())) in text.replace(" \\\n    ", " ")


def test_a_run_is_never_overwritten(run, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)
    folder = str(run.folder.parent)
    with pytest.raises(ValueError, match="choose another name"):
        train.train(RECIPE, folder=folder, name=run.folder.name)
    second = train.train(RECIPE, folder=folder)
    assert second.folder.name == "tiny_digits_2"
    for expected, found in zip(weights_of(run), weights_of(second), strict=True):
        np.testing.assert_array_equal(expected, found)
    said, told = capsys.readouterr()
    assert "Epoch 3/3" in said and not set(said + told) & set("\b\r\x1b"), "bars are for terminals"
    assert re.search(r"^Training: 12 of 15, epoch 3 of 3, loss [\d.]+, about \d+ s left$", told, re.MULTILINE)


def test_a_terminal_shows_how_far_the_whole_training_is(monkeypatch):
    """A resumed one, too: of 4 epochs of 5 steps, 6 steps were made before."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        assert keras_verbosity() == 0, "a bar of Keras's would be written over"
        state = SimpleNamespace(chief=True, steps=5)
        with contextlib.closing(RunProgress(state, epochs=4)) as told:
            told.on_epoch_begin(1)
            for step in range(7, 11):
                state.position = Position(step=step)
                told.on_train_batch_end(step - 7, {"loss": 0.25})
            told.on_epoch_end(1, {"loss": 0.25, "val_accuracy": 0.5})
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert "Epoch 2/4: loss 0.2500, val_accuracy 0.5000\r\n" in seen
    last = seen.strip().rpartition("\r")[2]
    assert re.search(r"^Training:  50%.* 10/20 \[\d\d:\d\d<\d\d:\d\d, .*epoch 2 of 4, loss 0.25\]$", last), last


def test_a_format_that_fails_costs_neither_the_others_nor_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FORMATS", ("keras", "tflite"))
    monkeypatch.setitem(train.EXPORTERS, "tflite", dataclasses.replace(train.EXPORTERS["tflite"], tolerance=-1.0))
    with pytest.raises(RuntimeError, match="tflite differs from the model"):
        train.train(RECIPE, folder=str(tmp_path), name="run")
    made = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"README.md", "run.json", "model.keras"} <= made and "model.tflite" not in made


def test_xla_on_several_replicas_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leave out --xla"):
        train.train(RECIPE, Settings(strategy="mirrored", xla=True), folder=str(tmp_path))


def test_a_run_evaluates_and_predicts(run, tmp_path):
    assert runs.evaluate(run.folder, "digits")["accuracy"] == pytest.approx(run.accuracy)
    Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(tmp_path / "black.png")
    ((path, best),) = runs.predict(run.folder, [tmp_path / "black.png"], top=3)
    expected = run.model.predict(np.zeros((1, 8, 8, 1)), verbose=0)[0]
    assert path.name == "black.png" and len(best) == 3
    assert best[0] == (str(expected.argmax()), pytest.approx(expected.max(), abs=1e-5))
