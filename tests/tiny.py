"""A tiny network on a sixth of the digits, to test training; `python -m tests.tiny train …` is the command line."""

import contextlib
import csv
import dataclasses
import functools
import operator
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from keras_resdense.__main__ import main
from keras_resdense.data.examples import in_memory
from keras_resdense.data.sources import load_data
from keras_resdense.networks import zoo
from keras_resdense.training import train
from keras_resdense.training.recipes import Recipe

ROOT = Path(__file__).parent.parent
#: Five steps an epoch.
RECIPE = Recipe(model="tiny", epochs=3, batch_size=48, ema=0.9, flip=True, warmup_epochs=1)
#: The same at the command line, with a checkpoint after each step.
COMMAND = "train --model tiny --batch-size 48 --ema 0.9 --flip --warmup-epochs 1".split()
COMMAND += ["--deterministic", "--save-every", "1"]


@functools.cache
def small_digits():
    """A sixth of the digits, in memory."""
    digits = load_data("digits")
    images, labels, _ = digits.train.read(np.arange(240))
    return dataclasses.replace(digits, train=in_memory(images, labels))


def without_batch_norm():
    images = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 128, -1)(images)
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, 2, activation="relu", kernel_regularizer=keras.regularizers.L2(5e-4))(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10, activation="softmax", name="predictions")(x))


def install(set_item=operator.setitem, set_attribute=setattr):
    """Registers the network, returns its data for every name, and leaves out exports, which have their own tests.

    Args:
        set_item: Like `operator.setitem`, or pytest's, which takes it back.
        set_attribute: Like `setattr`, likewise.
    """
    row = dataclasses.replace(zoo.VARIANTS["resnet20"], depths=(1, 1, 1), filters=(4, 8, 8), head_dropout=0.1)
    set_item(zoo.VARIANTS, "tiny", row)
    for formats in ("FORMATS", "QUANTISED_FORMATS"):
        set_attribute(train, formats, ())
    set_attribute(train, "load_data", lambda *_: small_digits())


@contextlib.contextmanager
def started(folder, name, epochs, environment=None, log="log"):
    """Starts the command line of a run in a folder; kills it at the end, if it is still there."""
    command = [sys.executable, "-m", "tests.tiny", *COMMAND, "--folder", str(folder), "--name", name]
    command += ["--epochs", str(epochs)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths} | (environment or {})
    with open(folder / log, "a") as file:
        made = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    with made:
        try:
            yield made
        finally:
            made.kill()


def newest_step(run):
    """Returns the step of a run's newest checkpoint; -1 if there is none."""
    return max((int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("step-*.npz")), default=-1)


def wait_for(made, happened):
    """Waits until something has happened, and fails if the process ends before that."""
    while not happened():
        assert made.poll() is None, f"ended with {made.returncode}"
        time.sleep(0.002)


def outcome(run):
    """Returns the final weights by name, and the history without its times."""
    weights = {}
    with h5py.File(run / "last.weights.h5") as file:
        file.visititems(lambda name, item: weights.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    rows = csv.DictReader((run / "history.csv").read_text().splitlines())
    return weights, [row | {"seconds": None} for row in rows]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    install(monkeypatch.setitem, monkeypatch.setattr)


if __name__ == "__main__":
    install()
    sys.exit(main())
