"""Devices, workers and precision: the same training at any scale."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resdense.__main__ import INTERRUPTED
from keras_resdense.data.batches import evaluation_batches, steps_per_epoch, training_batches
from keras_resdense.data.plan import Plan
from keras_resdense.networks import zoo
from keras_resdense.training import train, workers
from keras_resdense.training.accumulation import GradientAccumulation
from keras_resdense.training.agreement import check_workers, stopping_together
from keras_resdense.training.devices import precision, strategy
from keras_resdense.training.optimisation import compile_phase, phases_of
from keras_resdense.training.recipes import Settings
from keras_resdense.training.run_checkpoint import RunCheckpoint
from keras_resdense.training.run_folder import begin
from keras_resdense.training.run_progress import RunProgress
from tests.tiny import (  # noqa: F401
    RECIPE,
    ROOT,
    install,
    newest_step,
    outcome,
    small_digits,
    started,
    tiny,
    wait_for,
    without_batch_norm,
)

WORKER_RECIPE = dataclasses.replace(RECIPE, weight_decay=1e-3)
WORKER_SETTINGS = Settings(save_every=5)


@functools.cache
def two_devices():
    """All tests share one strategy, because collective operations of two strategies would be confused."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def losses(devices, policy="float32", **changes):
    """Returns the losses of 20 steps of a network without batch norm."""
    recipe = dataclasses.replace(RECIPE, **changes)
    plan = Plan(recipe=recipe, size=(8, 8), classes=10)
    keras.utils.set_random_seed(1)
    with precision(policy), devices.scope():
        model = without_batch_norm()
        if recipe.accumulation > 1:
            model = GradientAccumulation(model, recipe.accumulation)
        compile_phase(model, phases_of(recipe)[0], recipe, Settings(), 10)
    found = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found.append(logs["loss"])

    batches = training_batches(small_digits().train, plan, devices)
    model.fit(batches, epochs=20, steps_per_epoch=1, shuffle=False, verbose=0, callbacks=[Note()])
    return np.array(found)


def one_device():
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def test_loss_is_the_same_on_two_devices_and_with_accumulation():
    one, two = losses(one_device()), two_devices()
    assert one[-1] < one[0]
    np.testing.assert_allclose(losses(two), one, atol=1e-4)
    np.testing.assert_allclose(losses(two, accumulation=4), one, atol=1e-4)


@pytest.mark.sweep
def test_loss_is_the_same_on_four_devices(tmp_path):
    (found,) = run_workers(tmp_path / "four", "losses", 1)
    np.testing.assert_allclose(found["losses"], losses(one_device()), atol=1e-4)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_alike(precision):
    np.testing.assert_allclose(losses(one_device(), precision), losses(one_device()), atol=0.05)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("synchronous", [False, True])
def test_batch_statistics_are_one_for_all_replicas(synchronous):
    recipe, devices = dataclasses.replace(RECIPE, weight_decay=0.0), two_devices()
    with devices.scope():
        model = zoo.create_model("tiny", input_shape=(8, 8, 1))
        settings = Settings(sync_batch_norm=synchronous)
        compile_phase(model, phases_of(recipe)[0], recipe, settings, 10)
    plan = Plan(recipe=recipe, size=(8, 8), classes=10)
    batches = training_batches(small_digits().train, plan, devices)
    model.fit(batches, epochs=1, steps_per_epoch=3, shuffle=False, verbose=0)
    for variable in model.variables:
        if "moving" in variable.name:
            one, two = (np.array(part) for part in devices.experimental_local_results(variable.value))
            np.testing.assert_array_equal(one, two)
            assert np.abs(one).max() > 0


def test_strategies(monkeypatch):
    assert isinstance(strategy("none"), tf.distribute.OneDeviceStrategy)
    assert strategy("mirrored").num_replicas_in_sync == 2
    with pytest.raises(ValueError, match="auto, none, mirrored, multiworker"):
        strategy("many")
    with pytest.raises(ValueError, match="TF_CONFIG and SLURM describe none"):
        strategy("multiworker")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert workers.worker_count() == 3
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"chief": ["a:1"], "worker": ["b:1"]}}))
    assert workers.worker_count() == 2


@pytest.mark.parametrize("name", ["none", "mirrored"])
@pytest.mark.parametrize("arrays", [True, False])
def test_nothing_is_tuned_under_a_strategy(monkeypatch, name, arrays):
    """The tuning thread of a data set can delay the end of an epoch by a minute."""
    from tensorflow.python.data.ops import iterator_ops, multi_device_iterator_ops

    tuned = []

    def watch(owner):
        begin = owner.__init__

        def begin_watched(self, dataset=None, *args, **kwargs):
            if dataset is not None:
                tuned.append(dataset.options().autotune.enabled)
            begin(self, dataset, *args, **kwargs)

        monkeypatch.setattr(owner, "__init__", begin_watched)

    watch(multi_device_iterator_ops.OwnedMultiDeviceIterator)
    watch(iterator_ops.OwnedIterator)
    devices = strategy(name)
    with devices.scope():
        model = without_batch_norm()
        model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = np.zeros((8, 8, 8, 1), "float32"), np.zeros(8, int)
    data = {"x": x, "y": y} if arrays else {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(4)}
    model.fit(**data, validation_data=(x, y), shuffle=False, verbose=0)
    model.evaluate(**data, verbose=0)
    # Training, validation and evaluation: a data set of the host, and one of each device.
    assert len(tuned) >= 3 * (1 + devices.num_replicas_in_sync) and set(tuned) == {False}


def test_one_processor_iterates_over_data_sets_themselves():
    """Iterators for devices change how the whole process gives back memory."""
    devices, data = strategy("none"), tf.data.Dataset.range(3)
    assert isinstance(devices.experimental_distribute_dataset(data), tf.data.Dataset)
    assert devices.distribute_datasets_from_function(lambda context: data) is data


def test_slurm_names_workers_with_and_without_gpus(monkeypatch):
    job = {"PROCID": "2", "STEP_NUM_TASKS": "3", "STEP_NODELIST": "node[1-2]", "STEP_TASKS_PER_NODE": "2,1"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("TF_CONFIG", "")
    workers._describe_slurm()
    described = json.loads(os.environ["TF_CONFIG"])
    assert described["cluster"] == {"worker": ["node1:8888", "node1:8889", "node2:8888"]}
    assert described["task"] == {"type": "worker", "index": 2}


def test_a_worker_says_whom_it_waits_for(monkeypatch, capsys):
    monkeypatch.setattr("keras_resdense.training.workers.PATIENCE", 0)
    mine, missing = ports(2)
    other = {"worker 1": f"127.0.0.1:{missing}"}

    def start_late():
        time.sleep(1)
        with socket.create_server(("127.0.0.1", missing)):
            waiting.join()

    waiting = threading.Thread(target=workers.await_workers, args=(other, mine))
    waiting.start()
    start_late()
    assert f"Waiting for worker 1 at 127.0.0.1:{missing} to start." in capsys.readouterr().err
    monkeypatch.setattr("keras_resdense.training.workers.LIMIT", 0)
    with pytest.raises(TimeoutError, match=f"No answer within .* from worker 1 at 127.0.0.1:{missing}"):
        workers.await_workers(other, mine)


def test_a_lost_worker_is_named(monkeypatch):
    (address,) = cluster(1)["worker"]
    lost = tf.errors.UnavailableError(None, None, "Socket closed")
    with pytest.raises(tf.errors.UnavailableError), workers.noticing_losses():
        raise lost
    monkeypatch.setenv("TF_CONFIG", task({"worker": [address, address]}, 0)["TF_CONFIG"])
    back = tf.errors.FailedPreconditionError(None, None, "Collective ops is aborted by: group 1 not found.")
    for error in (lost, back):
        with pytest.raises(workers.WorkerLost, match=f"worker 1 at {address} is lost"), workers.noticing_losses():
            raise error
    with pytest.raises(tf.errors.FailedPreconditionError, match="mine"), workers.noticing_losses():
        raise tf.errors.FailedPreconditionError(None, None, "mine")


def test_workers_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resdense.training.workers.mean", lambda _, value: value + 1)
    with pytest.raises(ValueError, match="a file system that they share"):
        train.train(RECIPE, folder=str(tmp_path))


def test_workers_that_would_train_differently_stop(monkeypatch):
    """All workers stop with a message that says what differs and where."""
    data = small_digits()
    other = dataclasses.replace(data, contents=data.contents | {"images to train on": "1436"})
    sent = []
    monkeypatch.setattr(workers, "gather", lambda _, text: sent.append(text) or [text])
    check_workers(None, RECIPE, Settings(seed=1, data_dir="/elsewhere"), other)
    monkeypatch.setattr(workers, "gather", lambda _, text: [text, *sent])
    monkeypatch.setattr(workers, "worker_names", lambda: ["chief 0", "worker 0"])
    with pytest.raises(ValueError, match="In comparison with chief 0") as error:
        check_workers(None, dataclasses.replace(RECIPE, learning_rate=0.3), Settings(), data)
    assert str(error.value).splitlines()[1:-1] == [
        "  worker 0: learning_rate is 0.1 instead of 0.3",
        "  worker 0: seed is 1 instead of 0",
        "  worker 0: images to train on is 1436 instead of 1437",
    ]


def test_an_error_of_one_worker_stops_the_others(monkeypatch):
    monkeypatch.setattr(workers, "worker_names", lambda: ["worker 0", "worker 1"])
    monkeypatch.setattr(workers, "gather", lambda _, text: [text, "no such folder"])
    with pytest.raises(ValueError, match="worker 1: no such folder"), stopping_together(None):
        pass
    with pytest.raises(OSError, match="mine"), stopping_together(None):
        raise OSError("mine")


@pytest.mark.sweep
def test_workers_with_different_recipes_stop_together(tmp_path):
    described = cluster(2)
    with worker(tmp_path, "run", described, 0) as one, started(tmp_path, "run", 5, task(described, 1), "run-1") as two:
        assert one.wait(600) == two.wait(600) == 1
    for index in range(2):
        assert "worker 1: epochs is 5 instead of 4" in (tmp_path / f"run-{index}").read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("{'cluster': 1}", "TF_CONFIG is {'cluster': 1}, which cannot be read"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}', "cannot be read .'index'"),
        ('["a:1", "b:1"]', "cannot be read"),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 5}}',
            "this is worker 5, but its cluster has only worker 0, worker 1",
        ),
    ],
)
def test_a_wrong_tf_config_is_explained(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=message):
        strategy()


def ports(count):
    """Returns some free ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def cluster(count):
    """Describes some workers on this machine."""
    return {"worker": [f"127.0.0.1:{port}" for port in ports(count)]}


def task(described, index):
    """Returns a worker's environment variables."""
    return {"TF_CONFIG": json.dumps({"cluster": described, "task": {"type": "worker", "index": index}})}


def run_workers(folder, kind, count):
    """Trains on several processes and returns the result of each."""
    folder.mkdir()
    described, processes = cluster(count), []
    for index in range(count):
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = os.environ | {"PYTHONPATH": paths} | (task(described, index) if count > 1 else {})
        command = [sys.executable, "-m", "tests.test_scale", str(folder), kind]
        with open(folder / f"log-{index}", "w") as log:
            made = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            processes.append(made)
    codes = [process.wait(timeout=600) for process in processes]
    assert codes == [0] * count, (folder / "log-0").read_text()[-2000:]
    return [np.load(folder / f"worker-{index}.npz") for index in range(count)]


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.sweep)])
def test_workers_end_with_the_weights_and_metrics_of_one_process(tmp_path, count):
    (alone,) = run_workers(tmp_path / "alone", "plain", 1)
    for found in run_workers(tmp_path / "together", "plain", count):
        assert set(found.files) == set(alone.files)
        for name in alone.files:
            np.testing.assert_allclose(found[name], alone[name], atol=2e-5 if name == "metrics" else 1e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("count", [2, 3])
def test_workers_share_batch_statistics(tmp_path, count):
    first, *others = run_workers(tmp_path / "together", "network", count)
    for other in others:
        for name in set(first.files) - {"metrics"}:
            np.testing.assert_allclose(other[name], first[name], atol=1e-6)
    assert (tmp_path / "together" / "run" / "run.json").exists()


@pytest.mark.sweep
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_that_is_started_again_lets_the_others_go_on(tmp_path, victim):
    with together(tmp_path, "whole", cluster(2)) as (one, two):
        assert one.wait(1800) == two.wait(1800) == 0
    described, run = cluster(2), tmp_path / "killed"
    with worker(tmp_path, "killed", described, 1 - victim) as survivor:
        with worker(tmp_path, "killed", described, victim) as made:
            wait_for(made, lambda: newest_step(run) >= 7)
        log = tmp_path / f"killed-{1 - victim}"
        wait_for(survivor, lambda: f"Waiting for worker {victim} at" in log.read_text())
        assert f"The connection to worker {victim} at" in log.read_text()
        with worker(tmp_path, "killed", described, victim) as made:
            assert made.wait(1800) == survivor.wait(1800) == 0
    expected, found = outcome(tmp_path / "whole"), outcome(run)
    assert len(expected[1]) == len(found[1]) == 4
    for name in expected[0]:
        np.testing.assert_allclose(found[0][name], expected[0][name], atol=1e-6)


@pytest.mark.sweep
def test_sigterm_to_one_worker_stops_all_at_one_step(tmp_path):
    with together(tmp_path, "run", cluster(2)) as (one, two):
        wait_for(two, lambda: newest_step(tmp_path / "run") >= 3)
        two.send_signal(signal.SIGTERM)
        assert one.wait(1800) == two.wait(1800) == INTERRUPTED
    stops = [re.search(r"saved at step (\d+)", (tmp_path / f"run-{index}").read_text()) for index in range(2)]
    assert stops[0][1] == stops[1][1] == str(newest_step(tmp_path / "run"))
    with together(tmp_path, "run", cluster(2)) as (one, two):
        assert one.wait(1800) == two.wait(1800) == 0


def worker(folder, name, described, index):
    """Starts the command line as one worker."""
    return started(folder, name, 4, task(described, index), f"{name}-{index}")


@contextlib.contextmanager
def together(folder, name, described):
    """Starts the command line as two workers."""
    with worker(folder, name, described, 0) as one, worker(folder, name, described, 1) as two:
        yield one, two


def forbid_writing(folder):
    """Prevents Python from writing below a folder."""

    def refuse(event, arguments):
        writes = event == "os.mkdir" or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and str(arguments[0]).startswith(str(folder)):
            raise PermissionError(f"{arguments[0]} is the chief's to write")

    sys.addaudithook(refuse)


def work(folder: Path, kind: str) -> None:
    """Trains as the worker in TF_CONFIG, and writes its final weights and metrics."""
    if kind == "losses":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
        np.savez(folder / "worker-0.npz", losses=losses(strategy("mirrored")))
        return
    install()
    index = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    if index:
        forbid_writing(folder / "run")
    if kind == "network":
        run = train.train(WORKER_RECIPE, WORKER_SETTINGS, folder=str(folder), name="run")
        model, metrics = run.model, [run.accuracy]
    else:
        devices = strategy()
        data = small_digits()
        keras.utils.set_random_seed(0)
        with devices.scope():
            model = without_batch_norm()
        plan = Plan(recipe=WORKER_RECIPE, size=(8, 8), classes=10)
        steps = steps_per_epoch(data.train, WORKER_RECIPE)
        assert workers.gather(devices, "é" * 3**index) == ["é" * 3**n for n in range(workers.worker_count())]
        if workers.is_chief(devices):
            begin(folder / "run", WORKER_RECIPE, WORKER_SETTINGS, data)
        state = RunCheckpoint(folder / "run", workers.is_chief(devices), steps, WORKER_SETTINGS.save_every)
        train._fit(model, data, plan, WORKER_SETTINGS, devices, state, RunProgress(state, WORKER_RECIPE.epochs))
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        metrics = [row[name] for row in state.position.history for name in names]
        batches, test_steps = evaluation_batches(data.test, plan.contract(1), 10, devices)
        metrics += model.evaluate(batches, steps=test_steps, verbose=0)
        pixels = np.linspace(0, 255, 96 * 64, dtype="float32").reshape(96, 8, 8, 1)
        metrics += model.predict(pixels, batch_size=48, verbose=0).sum(0).tolist()
    np.savez(folder / f"worker-{index}.npz", *[keras.ops.convert_to_numpy(w) for w in model.weights], metrics=metrics)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
