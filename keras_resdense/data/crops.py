"""Random crops of training images.

A crop depends only on the size of an image, so only that part of it has to be decoded. Images are resized bilinearly,
with antialiasing along a side that shrinks, as Pillow and `tf.image.resize(antialias=True)` do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keras_resdense.data.resizing import scaled_columns, scaled_rows

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """The part of an image that becomes a network's input.

    Attributes:
        window: Top, left, height and width of the pixels that are needed `(4,)` int32; None for the whole image.
        scale: Factor of the height and of the width `(2,)` float32.
        shift: Pixels that the scaled window is moved down and to the right `(2,)` float32; None if the scaled window is
            the whole input.
    """

    window: Any
    scale: Any
    shift: Any = None

    def of(self, pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
        """Scales the pixels of the window.

        Args:
            pixels: `(height, width, channels)`.
            size: Height and width of the input.

        Returns:
            Pixels `(*size, channels)` float32.
        """
        import tensorflow as tf

        if tuple(pixels.shape[:2]) == tuple(size):
            return tf.cast(pixels, tf.float32)

        def scaled(shift):
            rows = scaled_rows(pixels, size[0], self.scale[0], shift[0])
            return scaled_columns(rows, size[1], self.scale[1], shift[1])

        if self.shift is None:
            # What grows is not antialiased, and TensorFlow has a faster operation for it.
            grows = tf.reduce_all(self.scale >= 1)
            image = tf.cond(grows, lambda: tf.image.resize(pixels, size), lambda: scaled((0.0, 0.0)))
        else:
            image = scaled(self.shift)
        return tf.ensure_shape(image, (*size, pixels.shape[2]))


def part_of(image: tf.Tensor) -> Callable[[Any], Any]:
    """Returns a function from the window of a view to its pixels in a decoded image."""
    import tensorflow as tf

    def part(window):
        if window is None:
            return image
        top, left, height, width = tf.unstack(window)
        pixels = tf.slice(image, (top, left, 0), (height, width, -1))
        return tf.ensure_shape(pixels, (None, None, image.shape[-1]))

    return part


def whole(shape: tf.Tensor, size: tuple[int, int], key: tf.Tensor) -> View:
    """Returns the whole image, resized without keeping its aspect ratio."""
    import tensorflow as tf

    return View(window=None, scale=tf.cast(size, tf.float32) / tf.cast(shape[:2], tf.float32))


def area(shape: tf.Tensor, size: tuple[int, int], key: tf.Tensor) -> View:
    """Returns a crop of 8–100 % of the area with an aspect ratio of 3/4–4/3 (1409.4842, section 6)."""
    import tensorflow as tf

    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros((1, 0, 4)),
        key,
        min_object_covered=0.0,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    scale = tf.cast(size, tf.float32) / tf.cast(extent[:2], tf.float32)
    return View(window=tf.concat([begin[:2], extent[:2]], 0), scale=scale)


def scale(shape: tf.Tensor, size: tuple[int, int], key: tf.Tensor) -> View:
    """Returns a random crop after resizing the shorter side to 256/224–480/224 of the size (1512.03385, 3.4)."""
    import tensorflow as tf

    draws = tf.random.stateless_uniform((3,), key)
    target = covering(shape, size, 256 / 224 + draws[0] * (480 - 256) / 224)
    return _cut(shape, size, target, tf.floor(draws[1:] * (target - tf.cast(size, tf.float32) + 1)))


#: Crops by their names in recipes: functions from the shape of an image, the network's size and a key to a view.
CROPS: dict[str, Callable[..., View]] = {"none": whole, "scale": scale, "area": area}


def covering(shape: tf.Tensor, size: tuple[int, int], share: float) -> tf.Tensor:
    """Returns the height and width `(2,)` float32 at which an image just covers `share` times the size."""
    import tensorflow as tf

    old, size = tf.cast(shape[:2], tf.float32), tf.cast(size, tf.float32)
    return tf.maximum(tf.round(old * tf.reduce_max(size * share / old)), size)


def _cut(shape, size, target, place) -> View:
    """Resizes to `target` and crops at a place `(2,)`, in whole pixels of the resized image."""
    import tensorflow as tf

    old, size = tf.cast(shape[:2], tf.float32), tf.cast(size, tf.float32)
    scale = target / old
    # A pixel depends on its neighbours, and on more of them if the image shrinks.
    reach = tf.maximum(1 / scale, 1) + 1
    first = tf.maximum(tf.floor(place / scale - reach), 0)
    last = tf.minimum(tf.math.ceil((place + size) / scale + reach), old)
    window = tf.cast(tf.concat([first, last - first], 0), tf.int32)
    return View(window=window, scale=scale, shift=first * scale - place)
