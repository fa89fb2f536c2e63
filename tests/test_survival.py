"""A training survives being stopped at any moment, and a full disk."""

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import signal
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resdense import create_model, export, runs
from keras_resdense.__main__ import main
from keras_resdense.data.sources import load_data
from keras_resdense.files import WRITING, sha256
from keras_resdense.training import checkpoints, train
from keras_resdense.training.agreement import DATA_FILE
from keras_resdense.training.recipes import Settings
from keras_resdense.training.run_checkpoint import Interrupted
from keras_resdense.training.run_folder import choose_folder, claimed, naming_unwritten_events
from tests.tiny import RECIPE, newest_step, outcome, small_digits, started, tiny, wait_for  # noqa: F401


@pytest.mark.parametrize("kills, epochs", [(1, 3), pytest.param(20, 16, marks=pytest.mark.sweep)])
def test_killed_at_random_moments_a_training_ends_bit_identical(tmp_path, kills, epochs):
    """Optimiser, averages, schedule, dropout, order and augmentation all resume."""
    moments, run, halfway = random.Random(0), tmp_path / "killed", 0
    with started(tmp_path, "whole", epochs) as whole:
        for number, step in enumerate(sorted(moments.sample(range(1, epochs * 5 - 8), kills))):
            with started(tmp_path, "killed", epochs) as made:
                wait_for(made, lambda step=step: newest_step(run) >= step)
                if number % 2:
                    wait_for(made, lambda: any((run / "checkpoints").glob(f"{WRITING}*")))
                else:
                    time.sleep(moments.uniform(0, 0.05))
            assert made.returncode == -signal.SIGKILL
            halfway += len(list(run.rglob(f"{WRITING}*")))
        if kills > 1:
            assert halfway > 0, "no kill came while a file was written"
            with started(tmp_path, "killed", epochs) as made:
                time.sleep(moments.uniform(0, 5))  # while it starts
            with started(tmp_path, "killed", epochs) as made:
                wait_for(made, (run / "last.weights.h5").exists)
        with started(tmp_path, "killed", epochs) as made:
            assert made.wait(1800) == 0, (tmp_path / "log").read_text()[-2000:]
        assert whole.wait(1800) == 0
    expected, found = outcome(tmp_path / "whole"), outcome(run)
    assert expected[1] == found[1] and set(expected[0]) == set(found[0])
    for name in expected[0]:
        np.testing.assert_array_equal(expected[0][name], found[0][name])
    assert not list(run.rglob(f"{WRITING}*"))


class KillAt(keras.callbacks.Callback):
    """Simulates a crash: leaves `fit` with an exception that nothing handles."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def killed(monkeypatch, batches, **options):
    """Begins a training and kills it after a number of batches."""
    callbacks = train._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(train, "_callbacks", lambda *known: [*callbacks(*known), KillAt(batches)])
        with pytest.raises(KeyboardInterrupt):
            train.train(**options)


FROZEN = {"frozen_epochs": 1, "frozen_learning_rate": 0.1}
QUANTISED = {"quantise": "int8", "quantised_epochs": 1}
MUON = {"optimizer": "muon", "learning_rate": 1e-3}


@pytest.mark.sweep
@pytest.mark.parametrize("options, stops", [(FROZEN, (7, 6)), (FROZEN | QUANTISED, (7, 6, 3)), (MUON, (7, 6))])
def test_phases_and_muon_survive_too(tmp_path, monkeypatch, options, stops):
    recipe = dataclasses.replace(RECIPE, **options)
    whole = train.train(recipe, folder=str(tmp_path), name="whole")
    for batches in stops:
        killed(monkeypatch, batches, recipe=recipe, folder=str(tmp_path), name="killed")
    resumed = train.train(recipe, folder=str(tmp_path), name="killed")
    for expected, found in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize(
    "number, steps",
    [
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.sweep),
        pytest.param(signal.SIGTERM, 5, marks=pytest.mark.sweep),
    ],
)
def test_sigterm_and_ctrl_c_save_and_the_same_command_goes_on(tmp_path, monkeypatch, number, steps):
    class Terminate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2 or steps == 5:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)

    settings = Settings(steps_per_execution=steps)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_callbacks", lambda *_: [Terminate()])
        with pytest.raises(Interrupted, match="saved at step [345]: the same command resumes"):
            train.train(RECIPE, settings, folder=str(tmp_path), name="run")
    assert 3 <= checkpoints.newest(tmp_path / "run" / "checkpoints").step <= 5
    assert signal.getsignal(number) == before
    run = train.train(RECIPE, settings, folder=str(tmp_path), name="run")
    assert len(outcome(run.folder)[1]) == 3


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    class Impatient(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train, "_callbacks", lambda *_: [Impatient()])
    # Shells let processes in the background ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train.train(RECIPE, folder=str(tmp_path), name="run")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_name_is_free_until_something_is_trained(tmp_path, monkeypatch):
    """An early error does not take a name, nor does it leave an empty folder."""
    options = {"folder": str(tmp_path), "name": "run"}
    with pytest.raises(ValueError, match="batch_size is 999"):
        train.train(dataclasses.replace(RECIPE, batch_size=999), **options)
    assert not (tmp_path / "run").exists()
    killed(monkeypatch, 1, recipe=dataclasses.replace(RECIPE, learning_rate=0.2), **options)
    assert (tmp_path / "run" / "recipe.json").exists()
    killed(monkeypatch, 6, recipe=RECIPE, **options)
    with pytest.raises(ValueError, match="holds another run"):
        train.train(dataclasses.replace(RECIPE, learning_rate=0.2), **options)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").touch()
    with pytest.raises(ValueError, match="holds another run"):
        train.train(RECIPE, folder=str(tmp_path), name="photos")


def test_a_folder_deleted_while_it_trains_is_said(tmp_path, monkeypatch):
    class Delete(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            shutil.rmtree(tmp_path / "run")

    options = {"folder": str(tmp_path), "name": "run"}
    with monkeypatch.context() as patch:
        patch.setattr(train, "_callbacks", lambda *_: [Delete()])
        with pytest.raises(OSError, match="recipe.json is gone: someone has deleted"):
            train.train(RECIPE, Settings(save_every=1), **options)
    killed(monkeypatch, 1, recipe=RECIPE, **options)


def test_data_that_changed_stop_a_run_that_goes_on(tmp_path, monkeypatch):
    options = {"recipe": RECIPE, "folder": str(tmp_path), "name": "run"}
    killed(monkeypatch, 6, **options)
    changed = dataclasses.replace(small_digits(), contents={"images to train on": "1438", "images held out": "360"})
    monkeypatch.setattr(train, "load_data", lambda *_: changed)
    with pytest.raises(ValueError, match="(?s)have changed since .* images to train on is 1438 instead of 1437"):
        train.train(**options)
    # Runs of older versions do not know what their data held.
    (tmp_path / "run" / DATA_FILE).unlink()
    killed(monkeypatch, 1, **options)


@pytest.mark.sweep
def test_a_run_goes_on_with_the_split_that_it_began_with(tmp_path, monkeypatch):
    """The run is bit-identical to one whose images never changed, and is still evaluated on the old images."""
    photos, random = tmp_path / "photos", np.random.default_rng(0)
    for number in range(60):
        path = photos / ("cat", "dög")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), "uint8")).save(path)
    monkeypatch.setattr(train, "load_data", load_data)
    recipe = dataclasses.replace(RECIPE, data=str(photos), batch_size=12, image_size=8)
    options = {"recipe": recipe, "folder": str(tmp_path)}
    whole = train.train(**options, name="whole")
    killed(monkeypatch, 6, **options, name="run")
    for number in range(20):
        shutil.copy(photos / "cat" / f"{2 * number}.png", photos / "cat" / f"new{number}.png")

    with pytest.raises(ValueError, match="(?s)have changed since .*--on-changed-data old_split"):
        train.train(**options, name="run")
    (photos / "cat" / "0.png").rename(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"(?s)1 images of the split in .*0.png: No such file.*Put them back"):
        train.train(**options, name="run", settings=Settings(on_changed_data="old_split"))
    (tmp_path / "0.png").rename(photos / "cat" / "0.png")

    run = train.train(**options, name="run", settings=Settings(on_changed_data="old_split"))
    assert outcome(run.folder)[1] == outcome(whole.folder)[1]
    for name, expected in outcome(whole.folder)[0].items():
        np.testing.assert_array_equal(outcome(run.folder)[0][name], expected)
    export(run.model, run.folder / "model.keras", "keras")
    measured = runs.evaluate(run.folder, str(photos))
    assert measured["images"] == 12 and measured["accuracy"] == pytest.approx(run.accuracy)


def test_damaged_newest_checkpoint_falls_back(tmp_path, monkeypatch):
    killed(monkeypatch, 12, recipe=RECIPE, folder=str(tmp_path), name="run")
    before, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    for damage in (content[: len(content) // 2], content[:1000] + b"!" + content[1001:], b""):
        newest.write_bytes(damage)
        with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
            assert checkpoints.newest(newest.parent).step == int(before.stem.split("-")[1])


def test_with_all_checkpoints_damaged_new_ones_are_kept(tmp_path, monkeypatch):
    """Training resumes from them after another kill, and the damaged ones are kept for inspection."""
    options = {"recipe": RECIPE, "settings": Settings(save_every=2), "folder": str(tmp_path), "name": "run"}
    killed(monkeypatch, 12, **options)
    folder = tmp_path / "run" / "checkpoints"
    damaged = sorted(path.name for path in folder.iterdir())
    for name in damaged:
        (folder / name).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="is damaged .* was renamed to step-.*damaged"):
        killed(monkeypatch, 4, **options)
    assert checkpoints.newest(folder).step == 4
    assert [f"{name}.damaged" for name in damaged] == sorted(path.name for path in folder.glob("*.damaged"))


def test_the_checkpoint_just_written_is_not_pruned(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd")
    for step in (7, 8, 3):
        checkpoints.save(tmp_path, model, checkpoints.Position(step=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003.npz", "step-000000008.npz"]


def test_a_checkpoint_of_another_network_changes_nothing(tmp_path):
    def compiled(units):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(units)])
        model.compile("sgd")
        return model

    checkpoints.save(tmp_path, compiled(4), checkpoints.Position())
    model = compiled(5)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"its array 2 has shape \(3, 4\), the model's variable has \(3, 5\)"):
        checkpoints.restore(tmp_path, model, 0)
    for expected, found in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, found)


@contextlib.contextmanager
def file_size_limit(size):
    """Limits the size of files, so writing fails in the middle, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_without_room_on_the_disk_the_last_checkpoint_stays(tmp_path, monkeypatch):
    killed(monkeypatch, 6, recipe=RECIPE, folder=str(tmp_path), name="run")
    (good,) = (tmp_path / "run" / "checkpoints").iterdir()
    with file_size_limit(good.stat().st_size // 2):
        with pytest.raises(OSError, match=r"cannot be written \(.*File too large.*the same command resumes"):
            train.train(RECIPE, folder=str(tmp_path), name="run")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == [good]
    assert checkpoints.newest(good.parent).step == 5


def test_events_that_cannot_be_written_are_named(tmp_path):
    full = tf.errors.OutOfRangeError(None, None, "x.v2; File too large\nCould not flush events file.")
    with pytest.raises(OSError, match=r"TensorBoard's files in .*x.v2; File too large\). .*resumes from it"):
        with naming_unwritten_events(tmp_path):
            raise full
    with pytest.raises(tf.errors.OutOfRangeError, match="mine"), naming_unwritten_events(tmp_path):
        raise tf.errors.OutOfRangeError(None, None, "mine")


def test_weights_are_not_begun_without_room(tmp_path):
    """HDF5 crashes the process if the disk is full."""
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
    path = tmp_path / "model.weights.h5"
    checkpoints.save_weights(path, model)
    before = path.read_bytes()
    with file_size_limit(len(before)), pytest.raises(OSError, match="model.weights.h5 cannot be written"):
        checkpoints.save_weights(path, model)
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == [path, tmp_path / f"{path.name}.sha256"]


def test_weights_whose_bits_flipped_are_refused(tmp_path):
    model = create_model("tiny", input_shape=(8, 8, 1))
    path = tmp_path / "best.weights.h5"
    checkpoints.save_weights(path, model)
    assert (tmp_path / "best.weights.h5.sha256").read_text() == f"{sha256(path)}  best.weights.h5\n"
    create_model("tiny", input_shape=(8, 8, 1), weights=str(path))
    with h5py.File(path, "r+") as file:
        file["layers/conv2d/vars/0"][0, 0, 0, 0] += 1
    with pytest.raises(
        ValueError, match=r"best.weights.h5 is damaged, .*remove that file if the replacement is intended"
    ):
        create_model("tiny", input_shape=(8, 8, 1), weights=str(path))
    (tmp_path / "best.weights.h5.sha256").unlink()
    create_model("tiny", input_shape=(8, 8, 1), weights=str(path))


def test_a_folder_that_cannot_be_made_is_said_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="run cannot be created .*Not a directory"):
        train.train(RECIPE, folder=str(tmp_path / "file"), name="run")


@pytest.mark.sweep
def test_out_of_memory_is_said_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    class Exhaust(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                tf.zeros((2**44,), tf.int8)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_callbacks", lambda *_: [Exhaust()])
        assert main(["train", "--model", "tiny", "--save-every", "1", "--folder", str(tmp_path), "--name", "run"]) == 1
    assert "Out of memory" in capsys.readouterr().err
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").step == 2


@pytest.mark.parametrize("steps", [1, pytest.param(5, marks=pytest.mark.sweep)])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_stops_and_keeps_the_last_good_weights(tmp_path, steps):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e18, ema=0.0, epochs=20)
    settings = Settings(save_every=1, steps_per_execution=steps)
    message = "after step .* last good weights are in" if steps == 1 else "after step 5. None were good before."
    with pytest.raises(FloatingPointError, match=message):
        train.train(recipe, settings, folder=str(tmp_path), name="run")
    for path in (tmp_path / "run").glob("checkpoints/*"):
        with np.load(path) as file:
            assert all(np.isfinite(file[name]).all() for name in file.files if name != "position")


def test_what_a_killed_process_left_is_removed(tmp_path):
    """This includes processes that were killed before they wrote the recipe."""
    leftovers = [tmp_path / "run" / f"{WRITING}abc", tmp_path / "run" / "checkpoints" / ".writing-def"]
    leftovers[0].mkdir(parents=True)
    target = choose_folder(tmp_path, "run", RECIPE, Settings())
    leftovers[1].mkdir(parents=True)
    with claimed(target):
        assert not any(path.exists() for path in leftovers)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    run = tmp_path / "run"
    with claimed(run):
        with pytest.raises(ValueError, match="Another process trains in"), claimed(run):
            pass
    with claimed(run):
        pass
    assert not run.exists(), "nothing was written there"
