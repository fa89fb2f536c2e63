"""Training: replicas, workers, precision, and what survives when it is stopped at any moment."""

import csv
import dataclasses
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resdense import checkpoints, inference, multiworker, pipeline, report, training, zoo
from keras_resdense.data import in_memory, load_data
from keras_resdense.recipes import Recipe, Settings


@functools.cache
def two_devices():
    """One for all tests: the collective operations of a second would be taken for those of the first."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


WORKER_RECIPE = Recipe(model="tiny", epochs=3, batch_size=48, ema=0.9, flip=True, warmup_epochs=1, weight_decay=1e-3)
WORKER_SETTINGS = Settings(save_every=5)


def small_digits():
    """A sixth of the digits, in memory."""
    digits = load_data("digits")
    handles = list(digits.train.order(None).take(240))
    images, labels, _ = zip(*map(digits.train.read, handles), strict=True)
    train = in_memory(np.stack(images), np.stack(labels), lambda pixels: pixels)
    return dataclasses.replace(digits, train=train)


def without_batch_norm():
    images = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 128, -1)(images)
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, 2, activation="relu", kernel_regularizer=keras.regularizers.L2(5e-4))(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10, activation="softmax", name="predictions")(x))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A small network and few images; no exports, which have tests of their own."""
    row = dataclasses.replace(zoo.VARIANTS["resnet20"], depths=(1, 1, 1), filters=(4, 8, 8), head_dropout=0.1)
    monkeypatch.setitem(zoo.VARIANTS, "tiny", row)
    monkeypatch.setattr(training, "FORMATS", ())
    data = small_digits()
    monkeypatch.setattr(training, "load_data", lambda *_: data)
    return data


RECIPE = Recipe(model="tiny", epochs=3, batch_size=48, ema=0.9, flip=True, warmup_epochs=1)


def history_of(run):
    return list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))


def weights_of(run):
    return [np.array(weight) for weight in run.model.get_weights()]


class KillAt(keras.callbacks.Callback):
    """Stands for a crash: leaves `fit` by an exception that nobody handles."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def killed(monkeypatch, batches, **options):
    """Begins a training and kills it after so many batches."""
    callbacks = training._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(training, "_callbacks", lambda *known: [*callbacks(*known), KillAt(batches)])
        with pytest.raises(KeyboardInterrupt):
            training.train(**options)


def test_a_killed_training_ends_bit_identical(tmp_path, monkeypatch):
    """Optimiser, averages, schedule, dropout, order and augmentation: all go on where they were."""
    settings = Settings(save_every=2)
    whole = training.train(RECIPE, settings, folder=str(tmp_path), name="whole")
    options = {"recipe": RECIPE, "settings": settings, "folder": str(tmp_path), "name": "killed"}
    for batches in (3, 4):
        killed(monkeypatch, batches, **options)
    resumed = training.train(**options)
    for expected, found in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_array_equal(expected, found)
    histories = [history_of(run) for run in (whole, resumed)]
    for expected, found in zip(*histories, strict=True):
        assert expected | {"seconds": 0} == found | {"seconds": 0}


def test_frozen_phase_survives_too(tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, frozen_epochs=1, frozen_learning_rate=0.1)
    whole = training.train(recipe, folder=str(tmp_path), name="whole")
    for batches in (7, 6):
        killed(monkeypatch, batches, recipe=recipe, folder=str(tmp_path), name="killed")
    resumed = training.train(recipe, folder=str(tmp_path), name="killed")
    for expected, found in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, monkeypatch):
    class Terminate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_callbacks", lambda *_: [Terminate()])
        with pytest.raises(training.Interrupted, match="saved at step [345]"):
            training.train(RECIPE, folder=str(tmp_path), name="run")
    assert 3 <= checkpoints.newest(tmp_path / "run" / "checkpoints").step < 5
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run = training.train(RECIPE, folder=str(tmp_path), name="run")
    assert len(history_of(run)) == 3


def test_damaged_newest_checkpoint_falls_back(tmp_path, monkeypatch):
    killed(monkeypatch, 12, recipe=RECIPE, folder=str(tmp_path), name="run")
    before, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    for damage in (content[: len(content) // 2], content[:1000] + b"!" + content[1001:], b""):
        newest.write_bytes(damage)
        with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
            assert checkpoints.newest(newest.parent).step == int(before.stem.split("-")[1])


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(tmp_path, monkeypatch):
    killed(monkeypatch, 6, recipe=RECIPE, folder=str(tmp_path), name="run")
    (good,) = (tmp_path / "run" / "checkpoints").iterdir()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match=f"No space left.*{good.name}"):
            training.train(RECIPE, folder=str(tmp_path), name="run")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == [good]
    assert checkpoints.newest(good.parent).step == 5


@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_stops_and_keeps_the_last_good_weights(tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e18, ema=0.0, epochs=20)
    with pytest.raises(FloatingPointError, match="after step"):
        training.train(recipe, Settings(save_every=1), folder=str(tmp_path), name="run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        with np.load(path) as file:
            assert all(np.isfinite(file[name]).all() for name in file.files if name != "position")


def test_a_run_s_folder(tmp_path):
    run = training.train(RECIPE, folder=str(tmp_path))
    assert run.folder == tmp_path / "tiny_digits"
    expected = {
        *("README.md", "best.weights.h5", "last.weights.h5", "confusion.png", "curves.png", "environment.json"),
        *("history.csv", "labels.txt", "recipe.json", "run.json"),
    }
    assert {path.name for path in run.folder.iterdir()} - {"tensorboard"} == expected
    for name in ("curves.png", "confusion.png"):
        with Image.open(run.folder / name) as image:
            assert min(image.size) >= 400
    results = json.loads((run.folder / "run.json").read_text())
    assert results["accuracy"] == run.accuracy and sum(map(sum, results["confusion"])) == 360
    rows = history_of(run)
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(run.accuracy, abs=1e-6)
    assert float(rows[-1]["val_loss"]) == pytest.approx(results["loss"], abs=0.01)  # it holds the weight decay, too
    card = (run.folder / "README.md").read_text()
    assert f"{run.accuracy:.2%}" in card and report.command(RECIPE, Settings()) in card


def test_a_run_is_never_overwritten(tmp_path):
    first = training.train(RECIPE, folder=str(tmp_path))
    with pytest.raises(ValueError, match="choose another name"):
        training.train(RECIPE, folder=str(tmp_path), name=first.folder.name)
    second = training.train(RECIPE, folder=str(tmp_path))
    assert second.folder.name == "tiny_digits_2"
    for expected, found in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_array_equal(expected, found)


def losses(devices, precision="float32", **changes):
    """Loss of each of 20 steps of a network without batch norm."""
    recipe = dataclasses.replace(RECIPE, **changes)
    plan = pipeline.Plan(recipe=recipe, size=(8, 8), classes=10)
    keras.utils.set_random_seed(1)
    with training._precision(precision), devices.scope():
        model = without_batch_norm()
        if recipe.accumulation > 1:
            model = training.accumulation.Accumulating(model, recipe.accumulation)
        training._compile(model, training._phases(recipe)[0], recipe, Settings(), 10)
    found = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found.append(logs["loss"])

    batches = pipeline.training_batches(small_digits().train, plan, devices)
    model.fit(batches, epochs=20, steps_per_epoch=1, shuffle=False, verbose=0, callbacks=[Note()])
    return np.array(found)


def test_loss_is_the_same_on_two_devices_and_with_accumulation():
    one = losses(tf.distribute.OneDeviceStrategy("/cpu:0"))
    two = two_devices()
    assert one[-1] < one[0]
    np.testing.assert_allclose(losses(two), one, atol=1e-4)
    np.testing.assert_allclose(losses(two, accumulation=4), one, atol=1e-4)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_alike(precision):
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    np.testing.assert_allclose(losses(one, precision), losses(one), atol=0.05)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("synchronous", [False, True])
def test_batch_statistics_are_one_for_all_replicas(synchronous):
    recipe, devices = dataclasses.replace(RECIPE, weight_decay=0.0), two_devices()
    with devices.scope(), training.synchronised_statistics():
        model = zoo.create_model("tiny", input_shape=(8, 8, 1))
        settings = Settings(sync_batch_norm=synchronous)
        training._compile(model, training._phases(recipe)[0], recipe, settings, 10)
    plan = pipeline.Plan(recipe=recipe, size=(8, 8), classes=10)
    batches = pipeline.training_batches(small_digits().train, plan, devices)
    model.fit(batches, epochs=1, steps_per_epoch=3, shuffle=False, verbose=0)
    for variable in model.variables:
        if "moving" in variable.name:
            one, two = (np.array(part) for part in devices.experimental_local_results(variable.value))
            np.testing.assert_array_equal(one, two)
            assert np.abs(one).max() > 0


def test_xla_on_several_replicas_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leave out --xla"):
        training.train(RECIPE, Settings(strategy="mirrored", xla=True), folder=str(tmp_path))


def test_strategies(monkeypatch):
    assert isinstance(training.strategy("none"), tf.distribute.OneDeviceStrategy)
    assert training.strategy("mirrored").num_replicas_in_sync == 2
    with pytest.raises(ValueError, match="auto, none, mirrored, multiworker"):
        training.strategy("many")
    with pytest.raises(ValueError, match="neither TF_CONFIG nor SLURM"):
        training.strategy("multiworker")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert multiworker.worker_count() == 3
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"chief": ["a:1"], "worker": ["b:1"]}}))
    assert multiworker.worker_count() == 2


def ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    numbers = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return numbers


def workers(folder, kind, count):
    """Trains on so many processes and returns what each ends with."""
    folder.mkdir()
    addresses = [f"127.0.0.1:{port}" for port in ports(count)]
    processes = []
    for index in range(count):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = os.environ | {"PYTHONPATH": paths} | ({"TF_CONFIG": json.dumps(task)} if count > 1 else {})
        command = [sys.executable, str(Path(__file__)), str(folder), kind]
        with open(folder / f"log-{index}", "w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait(timeout=600) for process in processes]
    assert codes == [0] * count, (folder / "log-0").read_text()[-2000:]
    return [np.load(folder / f"worker-{index}.npz") for index in range(count)]


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.sweep)])
def test_workers_end_with_the_weights_and_metrics_of_one_process(tmp_path, count):
    (alone,) = workers(tmp_path / "alone", "plain", 1)
    for found in workers(tmp_path / "together", "plain", count):
        assert set(found.files) == set(alone.files)
        for name in alone.files:
            np.testing.assert_allclose(found[name], alone[name], atol=2e-5 if name == "metrics" else 1e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("count", [2, 3])
def test_workers_share_batch_statistics(tmp_path, count):
    first, *others = workers(tmp_path / "together", "network", count)
    for other in others:
        for name in set(first.files) - {"metrics"}:
            np.testing.assert_allclose(other[name], first[name], atol=1e-6)
    assert (tmp_path / "together" / "run" / "run.json").exists()


def test_a_run_evaluates_and_predicts(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "FORMATS", ("keras",))
    run = training.train(RECIPE, folder=str(tmp_path))
    assert inference.evaluate(run.folder, "digits")["accuracy"] == pytest.approx(run.accuracy)
    Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(tmp_path / "black.png")
    ((path, best),) = inference.predict(run.folder, [tmp_path / "black.png"], top=3)
    expected = run.model.predict(np.zeros((1, 8, 8, 1)), verbose=0)[0]
    assert path.name == "black.png" and len(best) == 3
    assert best[0] == (str(expected.argmax()), pytest.approx(expected.max(), abs=1e-5))


def work(folder: Path, kind: str) -> None:
    """Trains as one worker, which TF_CONFIG names, and writes the weights and metrics that it ends with."""
    zoo.VARIANTS["tiny"] = dataclasses.replace(zoo.VARIANTS["resnet20"], depths=(1, 1, 1), filters=(4, 8, 8))
    training.FORMATS = ()
    training.load_data = lambda *_: small_digits()
    task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    if kind == "network":
        run = training.train(WORKER_RECIPE, WORKER_SETTINGS, folder=str(folder), name="run")
        model, metrics = run.model, [run.accuracy]
    else:
        devices = training.strategy()
        data = small_digits()
        keras.utils.set_random_seed(0)
        with devices.scope():
            model = without_batch_norm()
        plan = pipeline.Plan(recipe=WORKER_RECIPE, size=(8, 8), classes=10)
        (folder / "run").mkdir(parents=True, exist_ok=True)
        steps = pipeline.steps_per_epoch(data.train, WORKER_RECIPE)
        keeper = training._Keeper(folder / "run", multiworker.is_chief(devices), steps, WORKER_SETTINGS.save_every)
        training._fit(model, data, plan, WORKER_SETTINGS, devices, keeper)
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        metrics = [row[name] for row in keeper.position.history for name in names]
        batches, test_steps = pipeline.test_batches(data.test, plan, devices)
        metrics += model.evaluate(batches, steps=test_steps, verbose=0)
        pixels = np.linspace(0, 255, 96 * 64, dtype="float32").reshape(96, 8, 8, 1)
        metrics += model.predict(pixels, batch_size=48, verbose=0).sum(0).tolist()
    np.savez(folder / f"worker-{task}.npz", *[keras.ops.convert_to_numpy(w) for w in model.weights], metrics=metrics)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
