"""Opens encoded images so that only the needed part of a JPEG is decoded."""

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
    """Opens an encoded image.

    Args:
        encoded: Bytes of an image file, a scalar string tensor.
        channels: Channels to decode.
        otherwise: Function that decodes the bytes of any other image; default `tf.io.decode_image`.
        is_jpeg: Whether to use TensorFlow's JPEG decoder, which can decode a part; default whether the file
            is a JPEG.

    Returns:
        The `shape` and the `part` of an `Example`.
    """
    import tensorflow as tf

    def decoded():
        if otherwise:
            return otherwise(encoded)
        return tf.io.decode_image(encoded, channels=channels, expand_animations=False)

    if is_jpeg is None:
        is_jpeg = starts_with(encoded, JPEG)
    image = tf.cond(is_jpeg, lambda: tf.zeros((0, 0, channels), tf.uint8), decoded)
    image = tf.ensure_shape(image, (None, None, channels))
    size = tf.cond(is_jpeg, lambda: tf.io.extract_jpeg_shape(encoded)[:2], lambda: tf.shape(image)[:2])

    def part(window):
        pixels = tf.cond(
            is_jpeg, lambda: _part_of_jpeg(encoded, window, size, channels), lambda: part_of(image)(window)
        )
        return tf.ensure_shape(pixels, (None, None, channels))

    return tf.concat([size, [channels]], 0), part


def starts_with(encoded: tf.Tensor, signature: bytes) -> Any:
    """Returns whether a string tensor begins with a signature."""
    import tensorflow as tf

    return tf.strings.substr(encoded, 0, len(signature)) == signature


def _part_of_jpeg(encoded, window, size, channels: int):
    """Decodes to the same pixels as Pillow."""
    import tensorflow as tf

    if window is None:
        return tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")
    # The colours of a pixel depend on its neighbours, so pixels at the border need those outside.
    place, extent = window[:2], window[2:]
    first, last = tf.maximum(place - 1, 0), tf.minimum(place + extent + 1, size)
    pixels = tf.io.decode_and_crop_jpeg(
        encoded, tf.concat([first, last - first], 0), channels=channels, dct_method="INTEGER_ACCURATE"
    )
    return tf.slice(pixels, tf.concat([place - first, [0]], 0), tf.concat([extent, [channels]], 0))
