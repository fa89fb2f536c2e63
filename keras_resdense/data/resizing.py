"""Resizing and central crop as TensorFlow operations, with the pixels of Pillow, timm and torchvision.

Pillow resizes one axis after the other and rounds to bytes between the two. `tf.image.resize` does not, so its bicubic
pixels differ by up to 5 of 255; here they differ by 1. Sides and offsets are computed as in torchvision's
`resize` and `center_crop`. The crop is part of the resizing, so a thin image never becomes a huge one.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resdense.data.contract import ImageContract

if TYPE_CHECKING:
    import tensorflow as tf

#: Values of an image from which it is scaled by all threads.
_LARGE = 2**21
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


def prepare(image: tf.Tensor, contract: ImageContract) -> tf.Tensor:
    """Turns a decoded image into a network's input.

    Args:
        image: Pixels 0–255 `(height, width, channels)` of any number type, in grey or RGB.
        contract: The image contract to follow.

    Returns:
        Tensor `(*contract.size, contract.channels)` float32.
    """
    return normalise(resize_and_crop(_with_channels(image, contract.channels), contract), contract)


def prepare_outside_a_graph(image: np.ndarray, contract: ImageContract) -> np.ndarray:
    """Resizes and crops an image like `prepare`, but with Pillow if possible, which takes a third of the time.

    Args:
        image: Pixels `(height, width, 3)` uint8, in RGB.
        contract: The image contract to follow.

    Returns:
        Pixels `(*contract.size, contract.channels)` uint8. They rarely differ from those of `prepare`, by 1 or 2.
    """
    from PIL import Image

    check_channels(3, contract.channels)
    (top, left), (scale_down, scale_across), is_alike = _place(image.shape[0], image.shape[1], contract)
    if not is_alike:
        return resize_and_crop(_with_channels(image, contract.channels), contract).numpy().astype("uint8")
    photo = Image.fromarray(image)
    photo = photo.convert("L") if contract.channels == 1 else photo
    (height, width), (bottom, right) = contract.size, image.shape[:2]
    box = (
        left * scale_across,
        top * scale_down,
        min((left + width) * scale_across, right),
        min((top + height) * scale_down, bottom),
    )
    resized = photo.resize((width, height), Image.Resampling[contract.interpolation.upper()], box)
    return np.asarray(resized).reshape((height, width, contract.channels))


@functools.lru_cache(1024)
def _place(height: int, width: int, contract: ImageContract) -> tuple[Any, Any, bool]:
    """Returns the offset of the crop in the resized image, and the scales of height and width.

    The third result is whether Pillow resizes rows and columns of the crop in the same order as of the whole image.
    """
    import tensorflow as tf

    shape = tf.constant([height, width])
    target, offset = _target(shape, contract)
    is_alike = bool(_rows_first(shape, target) == _rows_first(shape, tf.constant(contract.size)))
    return tuple(offset.numpy().tolist()), (height / int(target[0]), width / int(target[1])), is_alike


def normalise(images: tf.Tensor, contract: ImageContract) -> tf.Tensor:
    """Normalises pixels `(..., channels)` of a contract's size, float32."""
    import tensorflow as tf

    images = tf.cast(images, tf.float32)
    if contract.takes_pixels:
        return images
    ordered = tf.reverse(images, [-1]) if contract.order == "bgr" else images
    return (ordered - tf.constant(contract.mean, tf.float32)) / tf.constant(contract.std, tf.float32)


def resize_and_crop(image: tf.Tensor, contract: ImageContract) -> tf.Tensor:
    """Resizes and crops an image like `prepare`, without changing its channels.

    Args:
        image: Pixels 0–255 `(height, width, channels)`.
        contract: Size, resizing, crop and interpolation.

    Returns:
        Tensor `(*contract.size, channels)` float32 of whole numbers 0–255.
    """
    import tensorflow as tf

    if tuple(image.shape[:2]) == contract.size == contract.resized:
        return tf.cast(image, tf.float32)
    shape, channels = tf.shape(image)[:2], image.shape[-1]
    target, offset = _target(shape, contract)
    scale, shift, kernel = tf.cast(target / shape, tf.float32), tf.cast(-offset, tf.float32), contract.interpolation
    height, width = contract.size

    def rows(pixels):
        return _to_bytes(scaled_rows(pixels, height, scale[0], shift[0], kernel))

    def columns(pixels):
        return _to_bytes(scaled_columns(pixels, width, scale[1], shift[1], kernel))

    pixels = tf.cond(_rows_first(shape, target), lambda: columns(rows(image)), lambda: rows(columns(image)))
    return tf.cast(tf.ensure_shape(pixels, (*contract.size, channels)), tf.float32)


def _target(shape, contract: ImageContract):
    """Returns the size of the resized image and the offset of the crop in it, `(2,)` int32 each."""
    import tensorflow as tf

    target = resized = tf.constant(contract.resized)
    if contract.resize == "shorter_side":
        exact, wanted = tf.cast(shape, tf.float64), tf.cast(resized, tf.float64)
        scale = tf.reduce_max(wanted / exact)
        # Rounding may make a side too small.
        target = tf.maximum(tf.cast(tf.reverse(wanted, [0]) * exact / tf.reverse(exact, [0]), tf.int32), resized)
        target = tf.where(wanted / exact == scale, resized, target)
    return target, tf.cast(tf.round(tf.cast(target - contract.size, tf.float64) / 2), tf.int32)


def _rows_first(shape, target):
    """Returns whether Pillow resizes the rows before the columns, because they shrink much more."""
    fewer = shape - target
    return (fewer[0] > 0) & (fewer[0] > 2 * fewer[1])


def scaled_rows(pixels: tf.Tensor, height: int, scale: Any, shift: Any, interpolation: str = "bilinear") -> tf.Tensor:
    """Scales an image to another height, antialiased where it shrinks.

    Args:
        pixels: `(rows, width, channels)` of any number type.
        height: Rows of the result.
        scale: Scale factor.
        shift: Offset of the scaled image, in rows.
        interpolation: "bilinear" or "bicubic".

    Returns:
        Tensor `(height, width, channels)` float32.
    """
    import tensorflow as tf

    rows, width, channels = tf.unstack(tf.shape(pixels))
    length = width * channels
    # TensorFlow splits an image by its rows among threads, which costs more than it saves unless the image is large.
    # Turned into columns of one row, it stays in one thread.
    order = tf.where(rows * length > _LARGE, [0, 1], [1, 0])
    scaled = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(pixels, tf.concat([[1], tf.gather([rows, 1], order), [length]], 0)),
        size=tf.gather([height, 1], order),
        scale=tf.gather([scale, 1.0], order),
        translation=tf.gather([shift, 0.0], order),
        kernel_type=_KERNELS[interpolation],
        antialias=True,
    )
    return tf.reshape(scaled, (height, width, channels))


def scaled_columns(pixels: tf.Tensor, width: int, scale: Any, shift: Any, interpolation: str = "bilinear") -> tf.Tensor:
    """Scales an image to another width, like `scaled_rows`."""
    import tensorflow as tf

    height, columns, channels = tf.unstack(tf.shape(pixels))
    # TensorFlow scales rows faster than columns, so the image is transposed twice.
    turned = _transposed(tf.reshape(pixels, (height, columns * channels)))
    scaled = scaled_rows(tf.reshape(turned, (columns, channels, height)), width, scale, shift, interpolation)
    return tf.reshape(_transposed(tf.reshape(scaled, (width * channels, height))), (height, width, channels))


def _transposed(matrix):
    """Transposes a matrix without oneDNN, which wakes all threads for floats, and so takes longer."""
    import tensorflow as tf

    if matrix.dtype != tf.float32:
        return tf.transpose(matrix)
    return tf.bitcast(tf.transpose(tf.bitcast(matrix, tf.uint32)), tf.float32)


def _to_bytes(pixels):
    import tensorflow as tf

    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0) + 0.5, tf.uint8)


def check_channels(found: int, wanted: int) -> None:
    """Raises a ValueError if an image cannot be converted to the channels that a network takes."""
    if wanted != found and (wanted not in (1, 3) or found not in (1, 3)):
        raise ValueError(f"The network takes {wanted} channels, but the image has {found}; only 1 and 3 are converted.")


def _with_channels(image, channels: int):
    """Converts between colour and grey as Pillow does."""
    import tensorflow as tf

    found = image.shape[-1]
    if found == channels:
        return image
    check_channels(found, channels)
    if found == 1:
        return tf.repeat(image, channels, axis=-1)
    grey = tf.linalg.matvec(tf.cast(image, tf.float32), [0.299, 0.587, 0.114])
    return tf.round(grey)[..., None]
