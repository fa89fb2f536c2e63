"""Encoded images of which only the part that is looked at is decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keras_resdense.data.crops import part_of

if TYPE_CHECKING:
    import tensorflow as tf

#: First bytes of a JPEG.
JPEG = b"\xff\xd8\xff"


def open_encoded(
    encoded: tf.Tensor,
    channels: int = 3,
    otherwise: Callable[[Any], Any] | None = None,
    is_jpeg: Any = None,
) -> Any:
    """Opens an image, and decodes it later.

    Args:
        encoded: Bytes of an image file, a scalar string tensor.
        channels: Channels to decode.
        otherwise: From the bytes to the pixels of an image that is not decoded as a JPEG; default TensorFlow's
            decoders of other formats.
        is_jpeg: Whether TensorFlow's JPEG decoder, which can leave out what is not looked at, reads the image;
            default, if the bytes are a JPEG's.

    Returns:
        Shape and part of an `Example`.
    """
    import tensorflow as tf

    def decoded():
        if otherwise:
            return otherwise(encoded)
        return tf.io.decode_image(encoded, channels=channels, expand_animations=False)

    if is_jpeg is None:
        is_jpeg = tf.strings.substr(encoded, 0, len(JPEG)) == JPEG
    image = tf.cond(is_jpeg, lambda: tf.zeros((0, 0, channels), tf.uint8), decoded)
    image = tf.ensure_shape(image, (None, None, channels))
    size = tf.cond(is_jpeg, lambda: tf.io.extract_jpeg_shape(encoded)[:2], lambda: tf.shape(image)[:2])

    def part(window):
        pixels = tf.cond(
            is_jpeg, lambda: _part_of_jpeg(encoded, window, size, channels), lambda: part_of(image)(window)
        )
        return tf.ensure_shape(pixels, (None, None, channels))

    return tf.concat([size, [channels]], 0), part


def _part_of_jpeg(encoded, window, size, channels: int):
    """Decodes with the precision of Pillow."""
    import tensorflow as tf

    if window is None:
        return tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")
    # The colours of a pixel come from its neighbours, too: the outermost would differ without those outside.
    place, extent = window[:2], window[2:]
    first, last = tf.maximum(place - 1, 0), tf.minimum(place + extent + 1, size)
    pixels = tf.io.decode_and_crop_jpeg(
        encoded, tf.concat([first, last - first], 0), channels=channels, dct_method="INTEGER_ACCURATE"
    )
    return tf.slice(pixels, tf.concat([place - first, [0]], 0), tf.concat([extent, [channels]], 0))
