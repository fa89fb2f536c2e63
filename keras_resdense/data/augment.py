"""Augmentation in TensorFlow operations. Random numbers depend on the position of an image, not on the machine.

All random numbers come from a key, which is two int64. Operations that are not drawn are not computed.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from keras_resdense.data.crops import CROPS
from keras_resdense.data.plan import Plan
from keras_resdense.data.rand_augment import rand_augment

if TYPE_CHECKING:
    import tensorflow as tf

#: Number of keys for an image or a group in an epoch.
DRAWS = 2**10
#: Probability of erasing, and ranges of the area and the aspect ratio: those of 1708.04896, with timm's areas.
ERASED, ERASED_SHARE, ERASED_RATIO = 0.5, (0.02, 1 / 3), (0.3, 1 / 0.3)


def place_key(seed: int, epoch: Any, number: Any) -> tf.Tensor:
    """Returns a key for an item of an epoch by its number. The next `DRAWS` keys belong to it, too."""
    import tensorflow as tf

    return tf.stack([epoch * 2**32 + seed, number * DRAWS])


def augmentation_alone(plan: Plan) -> Any:
    """Returns a function that crops and augments an image to the network's size.

    It takes the image's shape `(3,)`, a function from the window of a `View` to its pixels, and a key.
    """
    recipe = plan.recipe
    steps = []
    if recipe.padding:
        steps.append(functools.partial(moved, padding=recipe.padding))
    if recipe.flip:
        steps.append(flipped)
    if recipe.rand_augment:
        steps.append(functools.partial(rand_augment, magnitude=recipe.rand_augment))
    if recipe.erasing:
        steps.append(erased)

    def augment(shape, part, key):
        view = CROPS[recipe.crop](shape, plan.size, key)
        image = view.of(part(view.window), plan.size)
        for number, step in enumerate(steps, start=1):
            image = step(image, key=_further(key, 16 * number))
        return image

    return augment


def augmentation_together(plan: Plan) -> Any:
    """Returns a function that mixes the images of a group.

    It takes images `(group, height, width, channels)`, their classes `(group, classes)` and a key, and returns mixed
    images and targets `(group, classes)`.
    """
    import tensorflow as tf

    recipe = plan.recipe
    chances = {mixup: recipe.mixup, cutmix: recipe.cutmix}
    mixings = [functools.partial(mix, alpha=alpha) for mix, alpha in chances.items() if alpha]

    def augment(images, labels, key):
        if mixings:
            chosen = tf.random.stateless_uniform((), key, maxval=len(mixings), dtype=tf.int32)
            branches = [functools.partial(mix, images, labels, key=_further(key, 16)) for mix in mixings]
            images, labels = tf.switch_case(chosen, branches)
        if recipe.loss == "binary":
            # 2110.00476: all classes in a mixed image count as present; the authors' timm needs a share of 0.2.
            labels = tf.cast(labels > 0.2, tf.float32)
        return images, labels * (1 - recipe.label_smoothing) + recipe.label_smoothing / plan.classes

    return augment


def moved(image: tf.Tensor, padding: int, key: tf.Tensor) -> tf.Tensor:
    """Pads an image with zeros and crops it to its size at a random position (1512.03385, section 4.2)."""
    import tensorflow as tf

    top, left = tf.unstack(tf.random.stateless_uniform((2,), key, maxval=2 * padding + 1, dtype=tf.int32))
    padded = tf.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    return tf.ensure_shape(tf.slice(padded, (top, left, 0), image.shape), image.shape)


def flipped(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Flips an image left to right with probability 1/2."""
    import tensorflow as tf

    mirrored = tf.random.stateless_uniform((), key) < 0.5
    # A condition costs more than reversing a small image.
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, mirrored, False]))


def erased(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Fills a random rectangle of some images with noise (1708.04896)."""
    import tensorflow as tf

    happens, share, ratio, top, left = tf.unstack(tf.random.stateless_uniform((5,), key))
    height, width, channels = image.shape
    least, most = ERASED_SHARE
    flattest, steepest = map(math.log, ERASED_RATIO)
    pixels, ratio = (least + share * (most - least)) * height * width, tf.exp(flattest + ratio * (steepest - flattest))

    def erase():
        rows = tf.cast(tf.clip_by_value(tf.round(tf.sqrt(pixels * ratio)), 1, height), tf.int32)
        columns = tf.cast(tf.clip_by_value(tf.round(tf.sqrt(pixels / ratio)), 1, width), tf.int32)
        above, before = _place(top, height, rows), _place(left, width, columns)
        noise = tf.random.stateless_uniform((rows, columns, channels), _further(key, 1), maxval=256, dtype=tf.int32)
        around = [(above, height - above - rows), (before, width - before - columns), (0, 0)]
        kept = 1 - tf.pad(tf.ones((rows, columns, channels)), around)
        return tf.ensure_shape(image * kept + tf.pad(tf.cast(noise, tf.float32), around), image.shape)

    return tf.cond(happens < ERASED, erase, lambda: image)


def mixup(images: tf.Tensor, labels: tf.Tensor, alpha: float, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends each image with another of its group (1710.09412)."""
    shares, partners = _shares(labels, alpha, key), _partners(labels, key)
    return _blended(images, partners, shares), _blended(labels, partners, shares)


def cutmix(images: tf.Tensor, labels: tf.Tensor, alpha: float, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Puts a rectangle of another image of the group into each image (1905.04899)."""
    import tensorflow as tf

    kept, partners = _shares(labels, alpha, key), _partners(labels, key)
    places = tf.random.stateless_uniform((2, labels.shape[0], 1), _further(key, 2))
    inside, (_, *sides, channels) = [], images.shape
    for side, place in zip(sides, tf.unstack(places), strict=True):
        extent = tf.round(tf.sqrt(1 - kept)[:, None] * side)
        begin, pixels = _place(place, side, extent), tf.range(side, dtype=tf.float32)
        inside.append(tf.cast((pixels >= begin) & (pixels < begin + extent), tf.float32))
    rows, columns = inside
    shares = 1 - tf.reduce_mean(rows, 1) * tf.reduce_mean(columns, 1)
    # Rows are flattened, because TensorFlow is slow at broadcasting over three channels.
    inside = rows[:, :, None] * tf.repeat(columns, channels, 1)[:, None]
    flat = tf.reshape(images, (-1, sides[0], sides[1] * channels))
    mixed = flat + inside * (tf.gather(flat, partners) - flat)
    return tf.reshape(mixed, images.shape), _blended(labels, partners, shares)


def _shares(labels, alpha: float, key):
    """Draws from Beta(α, α) for each image."""
    import tensorflow as tf

    one, other = tf.unstack(tf.random.stateless_gamma((2, labels.shape[0]), key, alpha))
    # With a small α both can be 0; the image is then unchanged.
    return tf.where(one + other > 0, one / (one + other), 1.0)


def _partners(labels, key):
    import tensorflow as tf

    return tf.random.experimental.stateless_shuffle(tf.range(labels.shape[0]), _further(key, 1))


def _blended(values, partners, shares):
    import tensorflow as tf

    flat = tf.reshape(values, (values.shape[0], -1))
    others = tf.gather(flat, partners)
    return tf.reshape(others + shares[:, None] * (flat - others), values.shape)


def _place(draw, size, extent):
    """Returns a random integer position at which `extent` fits into `size`."""
    import tensorflow as tf

    room = tf.cast(size - extent, tf.float32)
    return tf.cast(tf.minimum(tf.floor(draw * (room + 1)), room), extent.dtype)


def _further(key, steps: int):
    """Returns the key `steps` draws later."""
    import tensorflow as tf

    return key + tf.constant([0, steps], tf.int64)
