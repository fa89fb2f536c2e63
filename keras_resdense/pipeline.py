"""From examples to batches: augmentation by Keras's layers, whose chances hang on the place, not on the machine.

An image is cropped, and goes through RandAugment, alone, with seeds from (seed, epoch, number of the image,
number of its repetition). Whatever a layer of Keras does to each image of a batch on its own is done to
`GROUP` images at once, which costs a fraction of their time one by one; its seeds come from (seed, epoch,
place of the group in the epoch). Batch b of an epoch therefore holds the same images, augmented alike, on any
number of replicas and workers, and after a training was resumed at any step.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import keras
import numpy as np

from keras_resdense.data import Examples
from keras_resdense.model import ahead
from keras_resdense.recipes import Recipe

#: Images that are augmented together, and that mixup and cutmix mix with one another; where the batch is no
#: multiple of it, groups are smaller.
GROUP = 8
#: Seeds that an image or a group has in an epoch.
DRAWS = 2**10
#: Images of a batch in evaluation, of each replica.
TEST_BATCH = 256
#: Images that the normalisation of pixels is measured on.
SAMPLE = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the batches of a training are made of.

    Attributes:
        recipe: How images are cropped, augmented and mixed.
        size: Height and width of an image for the network, in pixels.
        classes: How many there are.
        seed: Of order and augmentation.
    """

    recipe: Recipe
    size: tuple[int, int]
    classes: int
    seed: int = 0


def steps_per_epoch(examples: Examples, recipe: Recipe) -> int:
    """Counts the batches of an epoch; images that fill no batch are left out of it.

    Raises:
        ValueError: If there are fewer images than a batch has.
    """
    if examples.count < recipe.batch_size:
        raise ValueError(f"batch_size is {recipe.batch_size}, more than the {examples.count} training images.")
    return examples.count // recipe.batch_size


def training_batches(examples: Examples, plan: Plan, strategy, first_step: int = 0):
    """Makes the endless batches of a training.

    Args:
        examples: To learn from.
        plan: What is made of them.
        strategy: Whose replicas share each batch.
        first_step: Steps that are left out, because they have been made.

    Returns:
        A distributed data set of images `(batch, height, width, channels)` float32, pixels 0–255, and
        classes `(batch, classes)` float32, of which each replica gets its share of the batch.

    Raises:
        ValueError: If a batch cannot be shared equally.
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
    group = GROUP if recipe.mixup or recipe.cutmix else math.gcd(batch, GROUP)
    alone, together = _augmentation_alone(plan), _augmentation_together(plan)

    def epoch_examples(epoch):
        handles = examples.order(tf.stack([tf.constant(plan.seed, tf.int64), epoch]))
        if recipe.repeats > 1:
            handles = handles.flat_map(lambda handle: tf.data.Dataset.from_tensors(handle).repeat(recipe.repeats))
        placed = tf.data.Dataset.zip(tf.data.Dataset.from_tensors(epoch).repeat(), handles.enumerate())
        return placed.take(steps * batch)

    def load(epoch, placed):
        place, handle = placed
        image, label, number = examples.read(handle)
        image = alone(image, _key(plan.seed, epoch, number * recipe.repeats + place % recipe.repeats))
        return image, tf.one_hot(label, plan.classes), epoch, place

    def augment(images, labels, epochs, places):
        return together(images, labels, _key(plan.seed, epochs[0], -1 - places[0]))

    def share(context):
        mine = batch // context.num_input_pipelines
        if mine % group:
            raise ValueError(
                f"{group} images at a time are augmented together, but a worker's share of a step is {mine} images:"
                " change batch_size."
            )
        elements = tf.data.Dataset.counter(first_epoch).flat_map(epoch_examples).skip(skipped * batch)
        if context.num_input_pipelines > 1:
            elements = elements.enumerate()
            elements = elements.filter(lambda count, _: count % batch // mine == context.input_pipeline_id)
            elements = elements.map(lambda _, element: element)
        if examples.uniform and recipe.crop == "none" and not recipe.rand_augment:
            elements = elements.batch(group, drop_remainder=True).map(load, tf.data.AUTOTUNE, deterministic=True)
        else:
            elements = elements.map(load, tf.data.AUTOTUNE, deterministic=True).batch(group, drop_remainder=True)
        elements = elements.map(augment, tf.data.AUTOTUNE, deterministic=True)
        return ahead(elements.rebatch(batch // replicas, drop_remainder=True))

    return strategy.distribute_datasets_from_function(share)


def test_batches(examples: Examples, plan: Plan, strategy=None):
    """Makes batches of the images held out, the middle of each at the network's size, over and over.

    Args:
        examples: Held out.
        plan: Of it, the size and the number of classes.
        strategy: Whose replicas share the images; None for this machine alone, without any.

    Returns:
        The data set, and the steps of one pass over the images. It holds images
        `(batch, height, width, channels)` float32, pixels 0–255, classes `(batch, classes)` float32, and
        weights `(batch,)`: all batches are full, and what fills up the last weighs 0, the rest so much that
        Keras's loss, which it divides by the filled batches, is the mean over the images.
    """
    import tensorflow as tf

    strategy = strategy or tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    batch = min(TEST_BATCH, math.ceil(examples.count / replicas))
    steps = math.ceil(examples.count / (batch * replicas))
    crop = _test_crop(plan)

    def load(handle):
        image, label, _ = examples.read(handle)
        return crop(image), tf.one_hot(label, plan.classes), steps * batch * replicas / examples.count

    def share(context):
        workers = context.num_input_pipelines
        images = examples.order(None).shard(workers, context.input_pipeline_id)
        images = images.map(load, tf.data.AUTOTUNE, deterministic=True)
        filling = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), images.element_spec)
        images = images.concatenate(tf.data.Dataset.from_tensors(filling).repeat())
        batches = images.batch(batch, drop_remainder=True).take(steps * (replicas // workers))
        return ahead(batches.repeat())

    return strategy.distribute_datasets_from_function(share), steps


def test_image(image, plan: Plan):
    """Makes one image `(height, width, channels)` ready for a network, as `test_batches` does."""
    return _test_crop(plan)(image)


def pixel_statistics(examples: Examples, plan: Plan) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of each channel over `SAMPLE` of the images, the same ones always."""
    import tensorflow as tf

    crop = _test_crop(plan)
    sample = examples.order(tf.constant([0, 0], tf.int64)).take(SAMPLE)
    images = sample.map(lambda handle: crop(examples.read(handle)[0]), tf.data.AUTOTUNE, deterministic=True)
    moments = np.mean([(x.mean((0, 1)), np.square(x).mean((0, 1))) for x in ahead(images).as_numpy_iterator()], axis=0)
    mean, square = moments.astype("float64")
    # A channel that never changes is not blown up.
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 1.0)).tolist()


class _KeyedSeeds(keras.random.SeedGenerator):
    """Counts seeds up from a key, for layers that ask for one after another; TensorFlow scrambles them."""

    def __init__(self):
        super().__init__(seed=0)
        self.key, self.draws = None, 0

    def restart(self, key) -> None:
        self.key, self.draws = key, 0

    def next(self, ordered=True):
        import tensorflow as tf

        self.draws += 1
        return self.key + tf.constant([0, self.draws], tf.int64)


def _key(seed: int, epoch, number):
    """Returns a key of its own, with room for `DRAWS` seeds, for what has this number in an epoch."""
    import tensorflow as tf

    return tf.stack([epoch * 2**32 + seed, number * DRAWS])


def _augmentation_alone(plan: Plan):
    """Returns a function from an image of any size and a key to an image of the network's size."""

    recipe, seeds, layers = plan.recipe, _KeyedSeeds(), []
    if recipe.rand_augment:
        # It would choose the same operations for all images of a group.
        layers.append(keras.layers.RandAugment(value_range=(0, 255), num_ops=2, factor=recipe.rand_augment / 10))
        layers[0].generator = seeds

    def augment(image, key):
        seeds.restart(key)
        image = _CROPS[recipe.crop](image, plan.size, seeds)
        for layer in layers:
            image = layer(image[None], training=True)[0]
        return image

    return augment


def _augmentation_together(plan: Plan):
    """Returns a function from a group of images, their classes and a key to augmented images and targets."""
    import tensorflow as tf

    recipe, (height, width), seeds = plan.recipe, plan.size, _KeyedSeeds()
    layers, mixing = [], []
    if recipe.padding:
        # A crop of a padded image is a move; half a pixel more gives all whole moves the same chance.
        moves = [(recipe.padding + 0.5) / side for side in (height, width)]
        layers.append(keras.layers.RandomTranslation(*moves, fill_mode="constant", interpolation="nearest"))
    if recipe.flip:
        layers.append(keras.layers.RandomFlip("horizontal"))
    if recipe.erasing:
        layers.append(keras.layers.RandomErasing(factor=1.0, scale=(0.02, 0.33), value_range=(0, 255)))
    if recipe.mixup:
        mixing.append(keras.layers.MixUp(alpha=recipe.mixup))
    if recipe.cutmix:
        mixing.append(keras.layers.CutMix(factor=(recipe.cutmix, recipe.cutmix)))
    for layer in (*layers, *mixing):
        layer.generator = seeds

    def augment(images, labels, key):
        seeds.restart(key)
        for layer in layers:
            images = layer(images, training=True)
        if mixing:
            images, labels = _mixed(mixing, images, labels, seeds)
        if recipe.loss == "binary":
            # 2110.00476: all classes seen in an image count as present; its authors' timm asks for 0.2 of it.
            labels = tf.cast(labels > 0.2, tf.float32)
        return images, labels * (1 - recipe.label_smoothing) + recipe.label_smoothing / plan.classes

    return augment


def _mixed(layers: list, images, labels, seeds: _KeyedSeeds):
    """Mixes the images of a group by one of the layers, chosen by chance."""
    import tensorflow as tf

    def mix(layer):
        mixed = layer({"images": images, "labels": labels}, training=True)
        return mixed["images"], mixed["labels"]

    branches = [functools.partial(mix, layer) for layer in layers]
    chosen = tf.random.stateless_uniform((), seeds.next(), maxval=len(branches), dtype=tf.int32)
    return tf.switch_case(chosen, branches)


def _crop_none(image, size, seeds):
    """The whole image; it loses its proportions where they are not the network's."""
    return _resized(image, size)


def _crop_scale(image, size, seeds):
    """A crop at a random place after resizing the shorter side to 256/224–480/224 of the size (1512.03385, 3.4)."""
    import tensorflow as tf

    scale = tf.random.stateless_uniform((), seeds.next(), 256 / 224, 480 / 224)
    image = _shorter_side_resized(image, size, scale)
    return tf.image.stateless_random_crop(image, (*size, image.shape[-1]), seeds.next())


def _crop_area(image, size, seeds):
    """A crop of 8–100 % of the area and 3/4–4/3 of the proportions (1409.4842, section 6), resized."""
    import tensorflow as tf

    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros((1, 0, 4)),
        seeds.next(),
        min_object_covered=0.0,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    piece = tf.ensure_shape(tf.slice(image, begin, extent), (None, None, image.shape[-1]))
    return _resized(piece, size)


_CROPS = {"none": _crop_none, "scale": _crop_scale, "area": _crop_area}


def _resized(image, size):
    import tensorflow as tf

    if tuple(image.shape[-3:-1]) == tuple(size):
        return tf.cast(image, tf.float32)
    channels = image.shape[-1]
    return tf.ensure_shape(tf.image.resize(image, size, antialias=True), (*image.shape[:-3], *size, channels))


def _shorter_side_resized(image, size, scale):
    """Resizes, keeping proportions, so that the image just covers `scale` times the size."""
    import tensorflow as tf

    old, new = tf.cast(tf.shape(image)[:2], tf.float32), tf.cast(size, tf.float32) * scale
    target = tf.maximum(tf.round(old * tf.reduce_max(new / old)), tf.cast(size, tf.float32))
    return tf.ensure_shape(
        tf.image.resize(image, tf.cast(target, tf.int32), antialias=True), (None, None, image.shape[-1])
    )


def _test_crop(plan: Plan):
    """Returns a function from an image of any size to its middle of the network's size."""
    import tensorflow as tf

    height, width = plan.size

    def crop(image):
        if plan.recipe.crop == "none":
            return _resized(image, plan.size)
        image = _shorter_side_resized(image, plan.size, 1 / plan.recipe.test_crop)
        top, left = (tf.shape(image)[0] - height) // 2, (tf.shape(image)[1] - width) // 2
        return tf.image.crop_to_bounding_box(image, top, left, height, width)

    return crop
