"""From a recipe to a run: a trained model in a folder of its own, with its exports."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_resdense import zoo
from keras_resdense.data import ImageData, load_data
from keras_resdense.export import EXPORTERS, Export, export
from keras_resdense.recipes import Recipe


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


def strategy():
    """Returns the `tf.distribute` strategy that fits this machine.

    MirroredStrategy over all GPUs that TensorFlow sees; without any, OneDeviceStrategy on the CPU.
    Build and compile under its `scope()`, then call `model.fit` as usual.
    """
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU"):
        return tf.distribute.MirroredStrategy()
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def train(recipe: Recipe | None = None, *, folder: str = "saved_models", name: str | None = None, seed: int = 0) -> Run:
    """Trains, evaluates, saves and exports a model.

    Args:
        recipe: How; default `Recipe()`, ResNet-20 on the embedded digits.
        folder: Where the run's folder is made.
        name: Of the run; default made of model and data, with a number if that is taken.
        seed: Of weights, shuffling and augmentation.

    Returns:
        The run, whose folder appears complete or not at all.

    Raises:
        ValueError: If model or data are unknown, or there is a run of that name.
    """
    recipe = recipe or Recipe()
    zoo.get_row(recipe.model)
    target = _run_folder(Path(folder), name, f"{recipe.model}_{recipe.data}")
    data = load_data(recipe.data)
    keras.utils.set_random_seed(seed)
    batches = _training_batches(data, recipe, seed)
    with strategy().scope():
        model = build_classifier(recipe, data)
        model.compile(_optimizer(recipe, len(batches)), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(batches, epochs=recipe.epochs, shuffle=False)
    test_images = data.test_images.astype("float32")
    _, accuracy = model.evaluate(test_images, data.test_labels, batch_size=256, verbose=0)

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as temporary:
        staging = Path(temporary) / target.name
        staging.mkdir()
        exports = [export(model, staging, format, data.test_images, data.test_labels) for format in EXPORTERS]
        results = {"recipe": dataclasses.asdict(recipe), "seed": seed, "accuracy": accuracy}
        (staging / "run.json").write_text(json.dumps(results, indent=2) + "\n")
        (staging / "labels.txt").write_text("\n".join(data.class_names) + "\n")
        staging.rename(target)
    moved = [dataclasses.replace(made, path=target / made.path.name) for made in exports]
    return Run(folder=target, model=model, accuracy=accuracy, exports=moved)


def build_classifier(recipe: Recipe, data: ImageData) -> keras.Model:
    """Builds a recipe's network for a data set, normalisation of the pixels included."""
    images = keras.Input(data.train_images.shape[1:], name="images")
    mean, deviation = (statistic(data.train_images, axis=(0, 1, 2)) for statistic in (np.mean, np.std))
    x = keras.layers.Rescaling((1 / deviation).tolist(), (-mean / deviation).tolist(), name="normalise")(images)
    row = dataclasses.replace(zoo.get_row(recipe.model), weight_decay=recipe.weight_decay)
    return zoo.create_model(row, input_tensor=x, classes=len(data.class_names), name=recipe.model)


def _run_folder(parent: Path, name: str | None, default: str) -> Path:
    if name is None:
        names = itertools.chain([default], (f"{default}_{number}" for number in itertools.count(2)))
        return next(parent / name for name in names if not (parent / name).exists())
    if (parent / name).exists():
        raise ValueError(f"{parent / name} exists already: choose another name for this run.")
    return parent / name


def _training_batches(data: ImageData, recipe: Recipe, seed: int):
    """Returns shuffled, shifted batches; an incomplete last batch is left out of its epoch."""
    import tensorflow as tf

    count = len(data.train_images)
    if count < recipe.batch_size:
        raise ValueError(f"batch_size is {recipe.batch_size}, more than the {count} images of {data.name}.")
    shift = keras.layers.RandomTranslation(
        recipe.shift, recipe.shift, fill_mode="constant", interpolation="bilinear", seed=seed
    )
    batches = tf.data.Dataset.from_tensor_slices((data.train_images, data.train_labels))
    batches = batches.shuffle(count, seed=seed).batch(recipe.batch_size, drop_remainder=True)
    return batches.map(lambda images, labels: (shift(tf.cast(images, tf.float32), training=True), labels)).prefetch(2)


def _optimizer(recipe: Recipe, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    warmup = min(recipe.warmup_epochs, recipe.epochs) * steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else recipe.learning_rate,
        decay_steps=max(1, recipe.epochs * steps_per_epoch - warmup),
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return keras.optimizers.SGD(schedule, momentum=recipe.momentum, nesterov=True)
