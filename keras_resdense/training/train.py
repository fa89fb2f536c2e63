"""Trains a recipe into a run: a folder with the trained model, its measurements and its exports.

The same command resumes an interrupted run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from keras_resdense.checks import require_tensorflow
from keras_resdense.data.batches import (
    evaluation_batches,
    pixel_statistics,
    steps_per_epoch,
    take_images,
    training_batches,
)
from keras_resdense.data.examples import ImageData
from keras_resdense.data.keeping import keep
from keras_resdense.data.plan import ExportImages, Plan
from keras_resdense.data.sources import load_data
from keras_resdense.exporting.export import Export, export
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.progress import keras_verbosity
from keras_resdense.training import accumulation, checkpoints, report, workers
from keras_resdense.training.agreement import check_data, check_workers, naming_changed_files, stopping_together
from keras_resdense.training.checkpoints import Position
from keras_resdense.training.choosing_precision import choose_precision
from keras_resdense.training.classifier import build_classifier, image_size_of, network, plan_of, quantised
from keras_resdense.training.devices import precision, strategy
from keras_resdense.training.evaluation import evaluate
from keras_resdense.training.optimisation import compile_phase, phases_of
from keras_resdense.training.recipes import Recipe, Settings
from keras_resdense.training.run_checkpoint import RunCheckpoint, stopping_on_request
from keras_resdense.training.run_folder import (
    TENSORBOARD,
    begin,
    begun_settings,
    check_kept,
    choose_folder,
    claimed,
    is_untrained,
    naming_unwritten_events,
    split_of,
)
from keras_resdense.training.run_progress import RunProgress

if TYPE_CHECKING:
    from keras_resdense.networks.layers import Network

#: Formats that a run exports.
FORMATS = ("keras", "saved_model", "tflite")
#: Formats that a run with quantisation-aware training exports.
QUANTISED_FORMATS = ("keras", "saved_model", "tflite_int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training.

    Attributes:
        folder: Folder of the run.
        model: The trained model, from pixels 0–255 to probabilities.
        accuracy: Share of the held-out images that it classifies correctly.
        exports: The exported artefacts with their measurements.
    """

    folder: Path
    model: keras.Model
    accuracy: float
    exports: list[Export]


@workers.noticing_losses()
def train(
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    *,
    folder: str = "saved_models",
    name: str | None = None,
    data: ImageData | None = None,
) -> Run:
    """Trains, evaluates, saves and exports a model, or resumes an interrupted run.

    Args:
        recipe: What to train, and on which data; default `Recipe()`, ResNet-20 on the embedded digits.
        settings: Devices, precision, checkpoints and more; default `Settings()`.
        folder: Folder in which the run's folder is created.
        name: Name of the run; default the names of model and data, with a number if they are taken.
        data: The recipe's data, if `load_data` has already loaded them.

    Returns:
        The run. Its folder holds `run.json` once it is complete.

    Raises:
        ValueError: If the recipe does not fit the data, another run has that name, the data have changed since the run
            began, or the workers differ in what they train on.
        FloatingPointError: If the loss becomes NaN.
        Interrupted: If the process was asked to terminate.
        WorkerLost: If another worker has stopped.
        OSError: If a file cannot be written.
    """
    require_tensorflow("train")
    start = time.perf_counter()
    recipe, settings = recipe or Recipe(), settings or Settings()
    row = network(recipe, settings.memory_efficient)
    if settings.deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    devices = strategy(settings.strategy)
    if settings.xla and devices.num_replicas_in_sync > 1:
        raise ValueError("XLA compiles the step of one device, not that of several replicas: leave out --xla.")
    chief = workers.is_chief(devices)

    with contextlib.ExitStack() as held:
        # The folder, the data and the agreement of all workers.
        with stopping_together(devices):
            target = choose_folder(Path(folder), name, recipe, settings) if chief else Path(folder)
            if chief:
                held.enter_context(claimed(target))
        target = Path(folder) / workers.gather(devices, target.name)[0]
        with stopping_together(devices):
            split = split_of(target) if settings.on_changed_data == "old_split" else None
            if data is None or split:
                data = load_data(recipe.data, settings.data_dir or None, settings.on_bad_image, split)
            steps = steps_per_epoch(data.train, recipe)
            if chief and not is_untrained(target):
                check_data(target, data)
        check_workers(devices, recipe, settings, data)
        held.enter_context(naming_changed_files(data))
        held.enter_context(naming_unwritten_events(target))

        # The model.
        plan, channels = plan_of(recipe, data, row, settings.seed), data.image_shape[2]
        if settings.precision == "auto":
            begun = begun_settings(target, recipe, settings) if chief else None
            settings = dataclasses.replace(settings, precision=_precision(plan, row, channels, devices, begun))
        with precision(settings.precision):
            keras.utils.set_random_seed(settings.seed)
            normalisation = pixel_statistics(data.train, plan.contract(channels))
            with devices.scope():
                model = build_classifier(row, plan, normalisation, channels)

            # The training.
            if chief:
                begin(target, recipe, settings, data)
            state = RunCheckpoint(target, chief, steps, settings.save_every)
            learned = keep(data.train, plan.size) if recipe.keep else data.train
            with contextlib.closing(RunProgress(state, recipe.epochs)) as told:
                model = _fit(model, dataclasses.replace(data, train=learned), plan, settings, devices, state, told)
        if not chief:
            return Run(folder=target, model=model, accuracy=state.position.history[-1]["val_accuracy"], exports=[])

        # Evaluation, exports and report.
        check_kept(target)
        test_plan = dataclasses.replace(plan, size=image_size_of(recipe, data, row, recipe.test_size))
        final = build_classifier(row, test_plan, normalisation, channels)
        if recipe.quantise:
            final = quantised(final, data, test_plan)
        final.set_weights(model.get_weights())
        final.image_contract, final.class_names = test_plan.contract(channels), data.class_names
        checkpoints.save_weights(target / "last.weights.h5", final)
        measured = evaluate(final.predict_on_batch, data.test, final.image_contract, plan.classes)
        results = {
            "accuracy": measured.accuracy,
            "loss": measured.loss,
            "minutes": (time.perf_counter() - start) / 60,
            "image_shape": final.input_shape[1:],
            "weights_origin": final.weights_origin,
            "confusion": measured.confusion.tolist(),
        }
        images, labels = take_images(data.test, final.image_contract, ExportImages.compared_images)
        exports = []
        try:
            for format in QUANTISED_FORMATS if recipe.quantise else FORMATS:
                path = target / EXPORTERS[format].file_name
                exports.append(export(final, path, format, images, labels, overwrite=True))
        finally:
            # If a format fails, the others and the card are still written.
            check_kept(target)
            report.write(target, results, state.position.history, data.class_names)
        shutil.rmtree(target / "checkpoints", ignore_errors=True)
        return Run(folder=target, model=final, accuracy=measured.accuracy, exports=exports)


def _precision(plan: Plan, row: Network, channels: int, devices, begun: Settings | None) -> str:
    """Returns the precision that the chief chooses for all workers: that of the run's start, or the fastest."""
    found = ""
    if workers.is_chief(devices):
        batch = max(1, plan.recipe.batch_size // devices.num_replicas_in_sync // plan.recipe.accumulation)
        # Weights do not change the time, and may have to be downloaded.
        blank = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, weights=""))
        normalisation = [0.0] * channels, [1.0] * channels

        def build() -> keras.Model:
            return build_classifier(row, blank, normalisation, channels)

        found, why = (begun.precision, "The run began with it.") if begun else choose_precision(build, batch)
        print(f"Precision: {found}. {why}", flush=True)
    return workers.gather(devices, found)[0]


def _fit(
    model: keras.Model,
    data: ImageData,
    plan: Plan,
    settings: Settings,
    devices,
    state: RunCheckpoint,
    told: RunProgress,
) -> keras.Model:
    """Trains a model from its last checkpoint to the end, and returns the trained model."""
    recipe, steps = plan.recipe, state.steps
    contract = plan.contract(data.image_shape[2])
    test, test_steps = evaluation_batches(data.test, contract, plan.classes, devices, keep=recipe.keep)
    callbacks = [state, told, *_callbacks(recipe, state)]

    def fit(first_epoch: int, last_epoch: int, done: int) -> None:
        trained.fit(
            training_batches(data.train, plan, devices, first_epoch * steps + done, settings.same_order),
            initial_epoch=first_epoch,
            epochs=last_epoch,
            steps_per_epoch=steps - done,
            validation_data=test,
            validation_steps=test_steps,
            callbacks=callbacks,
            # The batches are shuffled already.
            shuffle=False,
            verbose=keras_verbosity() if state.chief else 0,
        )

    if state.chief:
        checkpoints.set_damaged_aside(state.folder / "checkpoints")
    reached = checkpoints.newest(state.folder / "checkpoints") or Position()
    for phase in phases_of(recipe)[reached.phase :]:
        with devices.scope():
            if phase.quantised:
                model = quantised(model, data, plan)
            trained = (
                accumulation.GradientAccumulation(model, recipe.accumulation) if recipe.accumulation > 1 else model
            )
            compile_phase(trained, phase, recipe, settings, steps)
        state.set_model(trained)
        epoch, done = divmod(state.restore(phase), steps)
        with stopping_on_request(state):
            if done:
                fit(epoch, epoch + 1, done)
                # At the end of every call of `fit`, Keras replaces the weights by their averages.
                epoch = state.restore(phase) // steps
            fit(epoch, phase.last, 0)
    return model


def _callbacks(recipe: Recipe, state: RunCheckpoint) -> list[keras.callbacks.Callback]:
    callbacks = [keras.callbacks.SwapEMAWeights()] if recipe.ema else []
    if state.chief and importlib.util.find_spec("tensorboard"):
        callbacks.append(keras.callbacks.TensorBoard(state.folder / TENSORBOARD))
    return callbacks
