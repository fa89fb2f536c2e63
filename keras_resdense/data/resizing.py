"""Resizing and central crop as TensorFlow operations, with the pixels of Pillow, timm and torchvision.

Pillow resizes one axis after the other and rounds to bytes between the two. `tf.image.resize` does not, so that its
bicubic pixels differ by up to 5 of 255; here they differ by 1. Sides and offsets are computed as in torchvision's
`resize` and `center_crop`. The crop is part of the resizing: a thin picture never becomes a huge one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_resdense.data.contract import ImageContract

if TYPE_CHECKING:
    import tensorflow as tf

_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


def prepare(image: tf.Tensor, contract: ImageContract) -> tf.Tensor:
    """Makes a decoded image a network's input.

    Args:
        image: Pixels 0–255 `(height, width, channels)` of any number type: 1 channel of grey or 3 in RGB.
        contract: What to do.

    Returns:
        Tensor `(*contract.size, contract.channels)` float32.
    """
    import tensorflow as tf

    image = resize_and_crop(_with_channels(image, contract.channels), contract)
    if contract.takes_pixels:
        return image
    ordered = tf.reverse(image, [-1]) if contract.order == "bgr" else image
    return (ordered - tf.constant(contract.mean)) / tf.constant(contract.std)


def resize_and_crop(image: tf.Tensor, contract: ImageContract) -> tf.Tensor:
    """Resizes an image and takes its middle, as `prepare` does; the channels stay.

    Args:
        image: Pixels 0–255 `(height, width, channels)`.
        contract: Size, resizing, crop and interpolation.

    Returns:
        Tensor `(*contract.size, channels)` float32 of whole numbers 0–255.
    """
    import tensorflow as tf

    if tuple(image.shape[:2]) == contract.size == contract.resized:
        return tf.cast(image, tf.float32)
    shape, resized, channels = tf.shape(image)[:2], tf.constant(contract.resized), image.shape[-1]
    target = resized
    if contract.resize == "shorter_side":
        exact, wanted = tf.cast(shape, tf.float64), tf.cast(resized, tf.float64)
        scale = tf.reduce_max(wanted / exact)
        # The side that decides may fall just below its size.
        target = tf.maximum(tf.cast(tf.reverse(wanted, [0]) * exact / tf.reverse(exact, [0]), tf.int32), resized)
        target = tf.where(wanted / exact == scale, resized, target)
    offset = tf.cast(tf.round(tf.cast(target - contract.size, tf.float64) / 2), tf.int32)
    # Pillow starts with the rows where they shrink much more than the columns.
    fewer = shape - target
    rows_first = (fewer[0] > 0) & (fewer[0] > 2 * fewer[1])
    first = tf.where(rows_first, [True, False], [False, True])
    images = image[None]
    for axes in (first, ~first):
        scale = tf.where(axes, tf.cast(target / shape, tf.float32), 1.0)
        scaled = tf.raw_ops.ScaleAndTranslate(
            images=images,
            size=tf.where(axes, contract.size, tf.shape(images)[1:3]),
            scale=scale,
            translation=tf.where(axes, tf.cast(-offset, tf.float32), 0.0),
            kernel_type=_KERNELS[contract.interpolation],
            antialias=True,
        )
        images = tf.floor(tf.clip_by_value(scaled, 0.0, 255.0) + 0.5)
    return tf.ensure_shape(images[0], (*contract.size, channels))


def _with_channels(image, channels: int):
    """Converts between colour and grey as Pillow does."""
    import tensorflow as tf

    found = image.shape[-1]
    if found == channels:
        return image
    if channels not in (1, 3) or found not in (1, 3):
        raise ValueError(f"The network takes {channels} channels, the image has {found}; only 1 and 3 are converted.")
    if found == 1:
        return tf.repeat(image, channels, axis=-1)
    grey = tf.linalg.matvec(tf.cast(image, tf.float32), [0.299, 0.587, 0.114])
    return tf.round(grey)[..., None]
