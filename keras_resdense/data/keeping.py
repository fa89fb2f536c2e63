"""Keeps decoded, shrunk images in memory, which makes many epochs on a few large photos faster."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resdense.data.crops import covering, part_of
from keras_resdense.data.examples import Examples, in_memory
from keras_resdense.data.tfdata import mapped, prefetch
from keras_resdense.progress import progress

if TYPE_CHECKING:
    import tensorflow as tf

#: Largest size of a kept image in multiples of the network's, so that a crop of a quarter is still sharp.
SPARE = 2


def keep(examples: Examples, size: tuple[int, int]) -> Examples:
    """Decodes all images, shrinks large ones and keeps them in memory.

    Args:
        examples: Images.
        size: Height and width of the network's input, in pixels.

    Returns:
        The same examples, in the same orders. An image larger than `SPARE` times `size` is shrunk to just cover that,
        with its aspect ratio.
    """
    import tensorflow as tf

    def load(handle: Any) -> tuple[tf.Tensor, tf.Tensor]:
        image, label, _ = examples.read(handle)
        return shrunk(image, size), label

    contents, shapes, labels = [], [], []
    images = prefetch(mapped(examples.handles(None), load))
    with progress("Reading images", examples.count) as advance:
        for image, label in images.as_numpy_iterator():
            contents.append(image.tobytes())
            shapes.append(image.shape)
            labels.append(label)
            advance(1)

    def opened(kept: Any) -> tuple[Any, Any]:
        content, shape = kept
        image = tf.reshape(tf.io.decode_raw(content, tf.uint8), shape)
        return shape, part_of(tf.ensure_shape(image, (None, None, shapes[0][2])))

    return in_memory((np.array(contents, object), np.array(shapes, "int32")), np.array(labels), opened)


def kept_bytes(size: tuple[int, int], channels: int) -> int:
    """Returns how many bytes `keep` needs for a large photo with an aspect ratio of 3/2."""
    return round(1.5 * SPARE**2 * math.prod(size) * channels)


def shrunk(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Returns pixels that cover `SPARE` times a size, or the image `(height, width, channels)` if it is smaller."""
    import tensorflow as tf

    sides = tf.shape(image)[:2]
    target = tf.cast(covering(sides, size, SPARE), tf.int32)

    def smaller():
        resized = tf.image.resize(image, target, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)

    return tf.ensure_shape(tf.cond(tf.reduce_any(target < sides), smaller, lambda: image), image.shape)
