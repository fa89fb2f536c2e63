"""Makes batches of examples. Their random numbers depend on the position of an image, not on the machine.

Crops and augmentations use a key from (seed, epoch, number of the image, number of its repetition). Mixup and cutmix
mix the images of a group, with a key from (seed, epoch, position of the group in the epoch). So batch b of an epoch has
the same images with the same augmentation on any number of replicas and workers, and after resuming at any step.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keras_resdense.data.augment import augmentation_alone, augmentation_together, place_key
from keras_resdense.data.contract import ImageContract
from keras_resdense.data.examples import Examples
from keras_resdense.data.plan import ImageRecipe, Plan
from keras_resdense.data.resizing import prepare
from keras_resdense.data.tfdata import mapped, prefetch, without_autograph

#: Images that mixup and cutmix mix with one another.
GROUP = 8
#: Images per replica in a batch of evaluation.
TEST_BATCH = 256
#: Bytes of prepared held-out images that may stay in memory.
KEPT = 2**28
#: Images that the mean and standard deviation of pixels are measured on.
SAMPLE = 2048


def steps_per_epoch(examples: Examples, recipe: ImageRecipe) -> int:
    """Returns the number of full batches in an epoch. The remaining images are left out of it.

    Raises:
        ValueError: If there are fewer images than a batch has.
    """
    if examples.count < recipe.batch_size:
        raise ValueError(
            f"batch_size is {recipe.batch_size}, more than the {examples.count} training images. Give a --batch-size of"
            f" at most {examples.count}."
        )
    return examples.count // recipe.batch_size


def class_counts(examples: Examples, classes: int) -> np.ndarray:
    """Counts the examples of each class `(classes,)`."""
    if examples.class_counts is not None:
        return np.pad(examples.class_counts, (0, classes - len(examples.class_counts)))
    labels = prefetch(mapped(examples.handles(None), lambda handle: examples.open(handle).label).batch(1024))
    return sum((np.bincount(part, minlength=classes) for part in labels.as_numpy_iterator()), np.zeros(classes, int))


def training_batches(
    examples: Examples, plan: Plan, strategy: Any, first_step: int = 0, same_order: bool = False
) -> Any:
    """Makes an endless data set of training batches.

    If examples are streamed from at least as many files as there are workers, each worker reads its own share of the
    files, which changes with each epoch. All workers make the same number of steps: a worker whose files hold fewer
    images reads some of them twice in that epoch.

    Args:
        examples: Training examples.
        plan: How batches are made of them.
        strategy: Strategy whose replicas share each batch.
        first_step: Number of steps to skip, because they are done.
        same_order: Whether a batch holds the same images for any number of workers. Each worker then reads all files.

    Returns:
        A distributed data set of images `(batch, height, width, channels)`, float32 pixels 0–255, and one-hot classes
        `(batch, classes)`, float32. Each replica gets its share of the batch.

    Raises:
        ValueError: If a batch cannot be split equally.
    """
    import tensorflow as tf

    recipe = plan.recipe
    steps, batch, replicas = steps_per_epoch(examples, recipe), recipe.batch_size, strategy.num_replicas_in_sync
    if batch % (replicas * recipe.accumulation):
        raise ValueError(
            f"batch_size is {batch}; {replicas} replicas with an accumulation of {recipe.accumulation} need a multiple"
            f" of {replicas * recipe.accumulation}."
        )
    first_epoch, skipped = divmod(first_step, steps)
    mixes = recipe.mixup > 0 or recipe.cutmix > 0
    weights = tf.constant(plan.class_weights or [1.0] * plan.classes)
    alone, together = augmentation_alone(plan), augmentation_together(plan)

    def numbered(handles, epoch, count):
        if recipe.repeats > 1:
            handles = handles.flat_map(lambda handle: tf.data.Dataset.from_tensors(handle).repeat(recipe.repeats))
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensors(epoch).repeat(), handles.enumerate()).take(count)

    def epoch_key(epoch):
        return tf.stack([tf.constant(plan.seed, tf.int64), epoch])

    def load(epoch, place, handle, repetition):
        example = examples.open(handle)
        key = place_key(plan.seed, epoch, example.number * recipe.repeats + repetition)
        image = alone(example.shape, example.part, key)
        # The categorical loss is proportional to its target.
        weight = tf.gather(weights, example.label)
        return image, weight * tf.one_hot(example.label, plan.classes), epoch, place

    def finish(images, labels, epochs, places):
        return together(images, labels, place_key(plan.seed, epochs[0], -1 - places[0]))

    def share(context):
        mine = batch // context.num_input_pipelines
        if mixes and mine % GROUP:
            raise ValueError(
                f"mixup and cutmix mix {GROUP} images at a time, but a worker's share of a step is {mine} images:"
                f" change batch_size to a multiple of {GROUP * context.num_input_pipelines}."
            )
        worker, workers = context.input_pipeline_id, context.num_input_pipelines
        sharded = examples.worker_handles is not None and 1 < workers <= examples.files and not same_order

        def epoch_examples(epoch):
            if sharded:
                handles = examples.worker_handles(epoch_key(epoch), worker, workers).repeat()
                return numbered(handles, epoch, steps * mine)
            return numbered(examples.handles(epoch_key(epoch)), epoch, steps * batch)

        def placed(epoch, element):
            number, handle = element
            place = number // mine * batch + worker * mine + number % mine if sharded else number
            return epoch, place, handle, number % recipe.repeats

        def is_mine(epoch, element):
            return element[0] % batch // mine == worker

        elements = tf.data.Dataset.counter(first_epoch).flat_map(without_autograph(epoch_examples))
        elements = elements.skip(skipped * (mine if sharded else batch))
        if workers > 1 and not sharded:
            elements = elements.filter(without_autograph(is_mine))
        each = batch // replicas
        elements = mapped(elements, lambda *element: load(*placed(*element)))
        elements = mapped(elements.batch(GROUP if mixes else each, drop_remainder=True), finish)
        return prefetch(elements.rebatch(each, drop_remainder=True) if mixes else elements)

    return strategy.distribute_datasets_from_function(share)


def evaluation_batches(
    examples: Examples, contract: ImageContract, classes: int, strategy: Any = None, keep: bool = False
) -> tuple[Any, int]:
    """Makes the repeated batches of an evaluation, prepared by an image contract.

    Args:
        examples: Held-out examples.
        contract: How an image becomes the network's input.
        classes: Number of classes.
        strategy: Strategy whose replicas share the images; None for this machine without a strategy.
        keep: Whether prepared images stay in memory for the next pass, if all of them fit in `KEPT` bytes.

    Returns:
        The data set, and the number of steps in one pass. The data set yields images
        `(batch, height, width, channels)`, one-hot classes `(batch, classes)` and weights `(batch,)`, all float32.
        All batches are full: images that fill up the last batch have weight 0. The other weights make Keras's loss,
        which is a mean over full batches, the mean over the images.
    """
    import tensorflow as tf

    strategy = strategy or tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    batch = min(TEST_BATCH, math.ceil(examples.count / replicas))
    steps = math.ceil(examples.count / (batch * replicas))

    def load(handle):
        image, label, _ = examples.read(handle)
        return prepare(image, contract), tf.one_hot(label, classes), steps * batch * replicas / examples.count

    def share(context):
        workers = context.num_input_pipelines
        images = examples.handles(None).shard(workers, context.input_pipeline_id)
        images = mapped(images, load)
        filling = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), images.element_spec)
        images = images.concatenate(tf.data.Dataset.from_tensors(filling).repeat())
        batches = images.batch(batch, drop_remainder=True).take(steps * (replicas // workers))
        if keep and 4 * examples.count * math.prod((*contract.size, contract.channels)) <= KEPT:
            batches = batches.cache()
        return prefetch(batches.repeat())

    return strategy.distribute_datasets_from_function(share), steps


def take_images(examples: Examples, contract: ImageContract, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns some images as the network takes them, `(images, height, width, channels)`, and their classes.

    They are the first images of an order that mixes the classes and is always the same.
    """
    images, labels = [], []
    for handle in prefetch(examples.handles((0, 0)).take(count)):
        image, label, _ = examples.read(handle)
        images.append(prepare(image, contract).numpy())
        labels.append(int(label))
    return np.stack(images), np.array(labels)


def pixel_statistics(examples: Examples, contract: ImageContract) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of each channel over the same `SAMPLE` images in every call."""
    import tensorflow as tf

    sample = examples.handles(tf.constant([0, 0], tf.int64)).take(SAMPLE)

    def load(handle):
        return prepare(examples.read(handle)[0], contract)

    images = mapped(sample, load)
    moments = np.mean(
        [(x.mean((0, 1)), np.square(x).mean((0, 1))) for x in prefetch(images).as_numpy_iterator()], axis=0
    )
    mean, square = moments.astype("float64")
    # A constant channel is not amplified.
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 1.0)).tolist()
