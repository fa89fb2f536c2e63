"""From a recipe to a run: a trained model in a folder of its own, with its exports.

A run that was interrupted, however, goes on from its last checkpoint when the same command is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from keras_resdense import accumulation, checkpoints, multiworker, pipeline, report, zoo
from keras_resdense.checkpoints import Position
from keras_resdense.data import ImageData, load_data
from keras_resdense.export import EXPORTERS, Export, export
from keras_resdense.layers import all_layers
from keras_resdense.recipes import RECIPE_FILE, Recipe, Settings, describe

#: Formats that every run is exported to.
FORMATS = ("keras", "saved_model", "tflite")
#: Images held out that exports are compared on, at most.
COMPARED = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training.

    Attributes:
        folder: Where everything of it is.
        model: The trained model, from pixels 0–255 to probabilities.
        accuracy: Share of the held-out images it classifies rightly.
        exports: What was exported, as measured.
    """

    folder: Path
    model: keras.Model
    accuracy: float
    exports: list[Export]


class Interrupted(Exception):
    """The training was asked to stop, and its state is saved."""


def strategy(name: str = "auto"):
    """Returns a `tf.distribute` strategy: build and compile under its `scope()`, then call `model.fit` as usual.

    Args:
        name: "none" for one device; "mirrored" for all GPUs of this machine, or all its logical CPUs;
            "multiworker" for the machines that `TF_CONFIG` or SLURM name; "auto" for what fits.

    Raises:
        ValueError: If the name is another, or "multiworker" finds no workers.
    """
    import tensorflow as tf

    if name == "multiworker" or (name == "auto" and multiworker.worker_count() > 1):
        return multiworker.multi_worker_strategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored":
        return tf.distribute.MirroredStrategy([device.name for device in gpus or tf.config.list_logical_devices("CPU")])
    if name == "auto" and gpus:
        return tf.distribute.MirroredStrategy()
    if name in ("auto", "none"):
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    raise ValueError(f"strategy is {name!r}; it must be one of auto, none, mirrored, multiworker.")


@multiworker.noticing_losses()
def train(
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    *,
    folder: str = "saved_models",
    name: str | None = None,
) -> Run:
    """Trains, evaluates, saves and exports a model, or goes on with doing so.

    Args:
        recipe: How; default `Recipe()`, ResNet-20 on the embedded digits.
        settings: On what and how carefully; default `Settings()`.
        folder: Where the run's folder is made.
        name: Of the run; default made of model and data, with a number if that is taken.

    Returns:
        The run. Its folder holds `run.json` once it is complete.

    Raises:
        ValueError: If the recipe makes no sense for the data, or another run has that name.
        FloatingPointError: If the loss is no longer a number.
        Interrupted: If the process was asked to terminate.
        WorkerLost: If another worker is gone.
        OSError: If a file cannot be written.
    """
    start = time.perf_counter()
    recipe, settings = recipe or Recipe(), settings or Settings()
    row = network(recipe, settings.memory_efficient)
    if settings.deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    devices = strategy(settings.strategy)
    if settings.xla and devices.num_replicas_in_sync > 1:
        raise ValueError("XLA compiles the step of one device, not that of several replicas: leave out --xla.")
    chief = multiworker.is_chief(devices)
    target = _open_run(Path(folder), name, recipe, settings, chief)
    with _claimed(target) if chief else contextlib.nullcontext():
        data = load_data(recipe.data, settings.data_dir or None, settings.on_bad_image)
        plan = _plan(recipe, data, row, settings.seed)
        with precision(settings.precision):
            keras.utils.set_random_seed(settings.seed)
            normalisation = pipeline.pixel_statistics(data.train, plan)
            with devices.scope():
                model = build_classifier(row, plan, normalisation, data.image_shape[2])
                if recipe.accumulation > 1:
                    model = accumulation.Accumulating(model, recipe.accumulation)
            keeper = _Keeper(target, chief, pipeline.steps_per_epoch(data.train, recipe), settings.save_every)
            _fit(model, data, plan, settings, devices, keeper)
        if not chief:
            return Run(folder=target, model=model, accuracy=keeper.position.history[-1]["val_accuracy"], exports=[])

        test_plan = dataclasses.replace(plan, size=_size(recipe, data, row, recipe.test_size))
        final = build_classifier(row, test_plan, normalisation, data.image_shape[2])
        final.set_weights(model.get_weights())
        checkpoints.save_weights(target / "last.weights.h5", final)
        predicted = report.predict(final, data.test, test_plan)
        images, labels = _sample(data, test_plan)
        exports = [
            export(final, target / EXPORTERS[format].file_name, format, images, labels, overwrite=True)
            for format in FORMATS
        ]
        results = report.Results(
            recipe=recipe,
            settings=settings,
            class_names=data.class_names,
            history=keeper.position.history,
            minutes=(time.perf_counter() - start) / 60,
            **predicted,
        )
        report.write(target, results, exports)
        shutil.rmtree(target / "checkpoints", ignore_errors=True)
        return Run(folder=target, model=final, accuracy=results.accuracy, exports=exports)


def network(recipe: Recipe, memory_efficient: bool = False):
    """Returns the row of a recipe's network, with what the recipe asks of it.

    Args:
        recipe: Whose network.
        memory_efficient: Of a dense network, see `DenseStyle`.

    Raises:
        ValueError: If there is no such variant, or it has no such knob.
    """
    row = zoo.get_row(recipe.model)
    wanted = {field: getattr(recipe, field) for field in ("drop_path", "dropout") if getattr(recipe, field)}
    wanted |= {"memory_efficient": True} if memory_efficient else {}
    for field in wanted:
        if not hasattr(row, field):
            raise ValueError(f"{recipe.model} is a {type(row).__name__}, which has no {field}: leave it out.")
    # Optimisers that decay weights by themselves would otherwise do it twice.
    decay = recipe.weight_decay if recipe.optimizer == "sgd" else 0.0
    return dataclasses.replace(row, weight_decay=decay, **wanted)


def build_classifier(row, plan: pipeline.Plan, normalisation, channels: int) -> keras.Model:
    """Builds a recipe's network for images of 0–255.

    Args:
        row: Of the network.
        plan: Whose recipe and size.
        normalisation: Mean and standard deviation of each channel.
        channels: Of an image.
    """
    recipe = plan.recipe
    images = keras.Input((*plan.size, channels), name="images")
    mean, deviation = map(np.array, normalisation)
    x = keras.layers.Rescaling((1 / deviation).tolist(), (-mean / deviation).tolist(), name="normalise")(images)
    return zoo.create_model(
        row,
        weights=recipe.weights or None,
        input_tensor=x,
        classes=plan.classes,
        classifier_activation="sigmoid" if recipe.loss == "binary" else "softmax",
        name=recipe.model,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Phase:
    """Epochs that are trained with one optimiser."""

    number: int
    first: int
    last: int
    frozen: bool


def _phases(recipe: Recipe) -> list[_Phase]:
    borders = [0, recipe.frozen_epochs, recipe.epochs] if recipe.frozen_epochs else [0, recipe.epochs]
    spans = itertools.pairwise(borders)
    return [
        _Phase(number=number, first=first, last=last, frozen=last == recipe.frozen_epochs)
        for number, (first, last) in enumerate(spans)
    ]


class _Keeper(keras.callbacks.Callback):
    """Writes checkpoints, the history and the best weights; stops at a NaN and when asked to.

    It stands before the callback that swaps averaged weights in for evaluation: at the end of one they are
    still there.
    """

    def __init__(self, folder: Path, chief: bool, steps: int, save_every: int):
        super().__init__()
        self.folder, self.chief, self.steps, self.save_every = folder, chief, steps, save_every
        self.position, self.epoch_start, self.started, self.stopping = Position(), 0, 0.0, False

    def restore(self, phase: _Phase) -> int:
        """Sets the model to the last checkpoint of a phase, if there is one; returns the steps made so far.

        Raises:
            ValueError: If other workers stand elsewhere.
        """
        found = checkpoints.restore(self.folder / "checkpoints", self.model, phase.number)
        begin = dataclasses.replace(self.position, phase=phase.number, step=phase.first * self.steps)
        self.position = found or begin
        if multiworker.mean(self.model.distribute_strategy, self.position.step) != self.position.step:
            raise ValueError(
                f"The last checkpoint that this worker sees in {self.folder} is of step {self.position.step}, others"
                " see another: give all workers one --folder, on a file system that they share."
            )
        return self.position.step

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_start, self.started = self.position.step, time.perf_counter()
        if self.epoch_start % self.steps:
            # Keras has just reset the metrics of the epoch that goes on.
            checkpoints.restore(self.folder / "checkpoints", self.model, self.position.phase)

    def on_train_batch_end(self, batch, logs=None):
        before, step = self.position.step, self.epoch_start + batch + 1
        if not math.isfinite(logs["loss"]):
            raise checkpoints.diverged(f"The loss is {float(logs['loss'])}", self.folder / "checkpoints", step)
        self.position = dataclasses.replace(self.position, step=step)
        # After its last step an epoch has still to be evaluated.
        if step % self.steps:
            self._stop_if_asked()
        if self.save_every and step // self.save_every > before // self.save_every and step % self.steps:
            self._save()

    def on_test_end(self, logs=None):
        if logs["accuracy"] > self.position.best:
            self.position = dataclasses.replace(self.position, best=float(logs["accuracy"]))
            if self.chief:
                checkpoints.save_weights(self.folder / "best.weights.h5", self.model)

    def on_epoch_end(self, epoch, logs=None):
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        measured = {name: float(value) for name, value in logs.items()}
        row = {"epoch": epoch + 1, **measured, "learning_rate": rate, "seconds": time.perf_counter() - self.started}
        self.position = dataclasses.replace(self.position, history=(*self.position.history, row))
        if self.chief:
            report.write_history(self.folder / "history.csv", self.position.history)
        self._save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        # Only together can workers save; one may hear of the end before the others.
        if multiworker.mean(self.model.distribute_strategy, self.stopping):
            self._save()
            step = self.position.step
            raise Interrupted(f"Stopped as asked, saved at step {step}: the same command goes on from there.")

    def _save(self) -> None:
        checkpoints.save(self.folder / "checkpoints", self.model, self.position, write=self.chief)
        # Until the chief has written it, no other worker reads the newest.
        multiworker.mean(self.model.distribute_strategy, 0.0)


def _fit(model: keras.Model, data: ImageData, plan: pipeline.Plan, settings: Settings, devices, keeper: _Keeper):
    """Trains a model from wherever its last checkpoint stands to the end."""
    recipe, steps = plan.recipe, keeper.steps
    test, test_steps = pipeline.test_batches(data.test, plan, devices)
    callbacks = [keeper, *_callbacks(recipe, keeper)]
    keeper.set_model(model)

    def fit(first_epoch: int, last_epoch: int, done: int) -> None:
        model.fit(
            pipeline.training_batches(data.train, plan, devices, first_epoch * steps + done),
            initial_epoch=first_epoch,
            epochs=last_epoch,
            steps_per_epoch=steps - done,
            validation_data=test,
            validation_steps=test_steps,
            callbacks=callbacks,
            # The batches come shuffled.
            shuffle=False,
            verbose="auto" if keeper.chief else 0,
        )

    reached = checkpoints.newest(keeper.folder / "checkpoints") or Position()
    for phase in _phases(recipe)[reached.phase :]:
        with devices.scope():
            _compile(model, phase, recipe, settings, steps)
        epoch, done = divmod(keeper.restore(phase), steps)
        with _stopping_on_request(keeper):
            if done:
                fit(epoch, epoch + 1, done)
                # Keras ends every call of `fit` by putting averaged weights in the place of the others.
                epoch = keeper.restore(phase) // steps
            fit(epoch, phase.last, 0)


def _callbacks(recipe: Recipe, keeper: _Keeper) -> list[keras.callbacks.Callback]:
    callbacks = [keras.callbacks.SwapEMAWeights()] if recipe.ema else []
    if keeper.chief and importlib.util.find_spec("tensorboard"):
        callbacks.append(keras.callbacks.TensorBoard(keeper.folder / "tensorboard"))
    return callbacks


def _compile(model: keras.Model, phase: _Phase, recipe: Recipe, settings: Settings, steps: int) -> None:
    for layer in all_layers(model):
        layer.trainable = layer.name == "predictions" if phase.frozen else True
        if settings.sync_batch_norm and isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    model.compile(
        _optimizer(model, phase, recipe, steps),
        "binary_crossentropy" if recipe.loss == "binary" else "categorical_crossentropy",
        weighted_metrics=["accuracy"],
        jit_compile=settings.xla,
        # An epoch ends where a call of the compiled function does.
        steps_per_execution=max(n for n in range(1, settings.steps_per_execution + 1) if steps % n == 0),
    )
    model.optimizer.build(model.trainable_variables)


def _optimizer(model: keras.Model, phase: _Phase, recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    common = {
        "learning_rate": _schedule(phase, recipe, steps),
        "use_ema": recipe.ema > 0,
        "ema_momentum": recipe.ema,
    }
    if recipe.optimizer == "sgd":
        return keras.optimizers.SGD(momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
    kind = {"lamb": keras.optimizers.Lamb, "adamw": keras.optimizers.AdamW}[recipe.optimizer]
    optimizer = kind(weight_decay=recipe.weight_decay, **common)
    optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if v.name != "kernel"])
    return optimizer


def _schedule(phase: _Phase, recipe: Recipe, steps: int):
    """Returns the learning rate of a phase, whose steps its optimiser counts from 0."""
    if phase.frozen:
        return recipe.scaled(recipe.frozen_learning_rate)
    peak, total = recipe.scaled(recipe.learning_rate), (phase.last - phase.first) * steps
    warmup = min(round(recipe.warmup_epochs * steps), total // 2)
    if not recipe.milestones:
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else peak,
            decay_steps=total - warmup,
            warmup_target=peak if warmup else None,
            warmup_steps=warmup,
        )
    boundaries = [round(epoch * steps) for epoch in recipe.milestones]
    values = [peak / 10**power for power in range(len(boundaries) + 1)]
    if warmup:
        boundaries, values = [warmup, *boundaries], [peak / 10, *values]
    # Keras reaches the next value one step after a boundary.
    return keras.optimizers.schedules.PiecewiseConstantDecay([boundary - 1 for boundary in boundaries], values)


def _plan(recipe: Recipe, data: ImageData, row, seed: int) -> pipeline.Plan:
    size = _size(recipe, data, row, recipe.image_size)
    return pipeline.Plan(recipe=recipe, size=size, classes=len(data.class_names), seed=seed)


def _size(recipe: Recipe, data: ImageData, row, wanted: int) -> tuple[int, int]:
    side = wanted or recipe.image_size
    if side:
        return side, side
    height, width, _ = data.image_shape
    return (height, width) if height and width else (row.stem.image_size,) * 2


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Lets Keras build layers that compute as `Settings.precision` says."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _stopping_on_request(keeper: _Keeper) -> Iterator[None]:
    """Lets SIGTERM stop the training after its present step. Only the main thread can listen to it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        keeper.stopping = True

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_run(parent: Path, name: str | None, recipe: Recipe, settings: Settings, chief: bool) -> Path:
    """Returns the folder of a run: a new one, or that of the same run where it is not complete."""
    described = describe(recipe, settings)

    def free(folder: Path) -> bool:
        held = [path for path in folder.glob("*") if not path.name.startswith(checkpoints.WRITING)]
        return not held or _unfinished(folder, described)

    if name is None:
        default = f"{recipe.model}_{Path(recipe.data).name}"
        names = itertools.chain([default], (f"{default}_{number}" for number in itertools.count(2)))
        folder = next(parent / name for name in names if free(parent / name))
    else:
        folder = parent / name
        if not free(folder):
            raise ValueError(f"{folder} holds another run, or this one complete: choose another name.")
    if chief:
        with checkpoints.replacing(folder / RECIPE_FILE) as temporary:
            temporary.write_text(described)
    return folder


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in a run's folder, and removes what a killed one was writing there.

    Raises:
        ValueError: If another process trains there.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"Another process trains in {folder}: let it, or choose another name.") from error
        except OSError:
            pass  # Not every file system has locks.
        checkpoints.remove_leftovers(folder)
        yield
    finally:
        os.close(handle)


def _unfinished(folder: Path, described: str) -> bool:
    recipe = folder / RECIPE_FILE
    return not (folder / report.RESULTS_FILE).exists() and recipe.exists() and recipe.read_text() == described


def _sample(data: ImageData, plan: pipeline.Plan) -> tuple[np.ndarray, np.ndarray]:
    batches, _ = pipeline.test_batches(data.test, plan)
    batches = batches.unbatch().take(min(COMPARED, data.test.count))
    images, classes, _ = zip(*batches.as_numpy_iterator(), strict=True)
    return np.stack(images), np.argmax(classes, axis=-1)
