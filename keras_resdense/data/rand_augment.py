"""RandAugment (1909.13719) as in timm, in TensorFlow operations.

The operations, their strengths and their chances are those of timm's `rand-m7-mstd0.5-inc1`, with which the
weights of 2110.00476 were trained. Each operation gives the pixels that Pillow gives, to within one level;
rotations, shears and translations interpolate bilinearly, where timm may also take Pillow's bicubic filter.

An operation works on one image `(height, width, channels)` float32 of whole pixel values 0–255. It is written for speed
on one core: rows are flattened, because TensorFlow is slow at broadcasting over three channels, and `tf.where` is
avoided on whole images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

#: Number of operations that are applied to an image.
LAYERS = 2
#: Probability of each operation.
CHANCE = 0.5
#: Standard deviation of a magnitude.
NOISE = 0.5
#: Highest magnitude.
HIGHEST = 10
#: Fill values for pixels from outside the image: ImageNet's mean colour, and its lightness.
FILL, GREY_FILL = (124.0, 116.0, 104.0), 117.0
#: Weights of red, green and blue in grey: ITU-R 601-2, in Pillow's whole numbers.
LUMA = tuple(weight / 65536 for weight in (19595, 38470, 7471))
#: Added before rounding down, so that rounding errors do not cost a whole number.
_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """A row of `OPERATIONS`.

    Attributes:
        apply: Function from an image, and a strength if there is one, to an image.
        strength: Function from a magnitude 0–10 and a sign, 1 or -1, to a strength.
    """

    apply: Callable[..., Any]
    strength: Callable[[Any, Any], Any] | None = None

    def __call__(self, image: tf.Tensor, magnitude: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
        """Changes an image with a magnitude 0–10 and a sign, 1 or -1."""
        return self.apply(image, self.strength(magnitude, sign)) if self.strength else self.apply(image)


def rand_augment(image: tf.Tensor, magnitude: float, key: tf.Tensor) -> tf.Tensor:
    """Changes an image by random operations.

    Args:
        image: `(height, width, channels)` float32, pixels 0–255.
        magnitude: Mean magnitude of the operations, 0–10.
        key: Key of the random numbers, two int64.

    Returns:
        The image, of whole pixel values 0–255.
    """
    import tensorflow as tf

    happens, kinds, signs = tf.unstack(tf.random.stateless_uniform((3, LAYERS), key))
    noise = NOISE * tf.random.stateless_normal((LAYERS,), key + tf.constant([0, 1], tf.int64))
    magnitudes = tf.clip_by_value(magnitude + noise, 0, HIGHEST)
    chosen = tf.where(happens < CHANCE, tf.cast(kinds * len(OPERATIONS), tf.int32) + 1, 0)
    signs, shape = tf.where(signs < 0.5, -1.0, 1.0), image.shape
    image = tf.clip_by_value(tf.round(image), 0, 255)
    for layer in range(LAYERS):
        branches = [functools.partial(tf.identity, image)]
        branches += [functools.partial(row, image, magnitudes[layer], signs[layer]) for row in OPERATIONS.values()]
        image = tf.ensure_shape(tf.switch_case(chosen[layer], branches), shape)
    return image


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to the whole range of values."""
    import tensorflow as tf

    low, high = (_of_channels(reduce, image) for reduce in (tf.reduce_min, tf.reduce_max))
    flat = high == low
    low, scale = tf.where(flat, 0.0, low), tf.where(flat, 1.0, 255 / tf.maximum(high - low, 1))
    stretched = (_rows(image) - _row(low, image)) * _row(scale, image)
    return _whole(tf.reshape(stretched, image.shape))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Gives each channel a uniform histogram."""
    import tensorflow as tf

    channels = image.shape[-1]
    values = tf.cast(_rows(image), tf.int32) + _row(256 * tf.range(channels), image)
    counts = tf.math.bincount(tf.reshape(values, [-1]), minlength=256 * channels)
    counts = tf.reshape(counts, (channels, 256))
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), -1, keepdims=True)
    step = (tf.reduce_sum(counts, -1, keepdims=True) - tf.gather(counts, last, batch_dims=1)) // 255
    below = tf.cumsum(counts, -1, exclusive=True)
    table = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step > 0, table, tf.range(256)), tf.float32)
    return tf.reshape(tf.gather(tf.reshape(table, [-1]), values), image.shape)


def invert(image: tf.Tensor) -> tf.Tensor:
    return 255 - image


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest bits of each value."""
    import tensorflow as tf

    size = 2 ** (8 - bits)
    return tf.floor(image / size) * size


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts the values that reach a threshold."""
    return image + _reached(image, threshold) * (255 - 2 * image)


def solarize_add(image: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Adds to the values of the darker half."""
    import tensorflow as tf

    return tf.minimum(image + (1 - _reached(image, 128)) * amount, 255)


def color(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends with the grey image."""
    import tensorflow as tf

    if image.shape[-1] != 3:
        return image
    mixing = factor * tf.eye(3) + (1 - factor) * tf.constant(LUMA)[:, None]
    mixed = tf.reshape(tf.matmul(tf.reshape(image, (-1, 3)), mixing), image.shape)
    return _whole(tf.clip_by_value(mixed, 0, 255))


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends with the mean of the grey image."""
    import tensorflow as tf

    grey = image
    if image.shape[-1] == 3:
        grey = tf.add_n([weight * part for weight, part in zip(LUMA, tf.split(image, 3, -1), strict=True)])
    return _blended(tf.floor(tf.reduce_mean(tf.round(grey)) + 0.5), image, factor)


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends with black."""
    return _blended(0.0, image, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends with a smoothed image. The outermost pixels stay as they are."""
    import tensorflow as tf

    inside = image[1:-1, 1:-1]
    rows = image[:-2] + image[1:-1] + image[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    blended = _blended(tf.floor((box + 4 * inside) / 13 + 0.5), inside, factor)
    middle = tf.concat([image[1:-1, :1], blended, image[1:-1, -1:]], 1)
    return tf.concat([image[:1], middle, image[-1:]], 0)


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Turns counterclockwise about the middle."""
    import tensorflow as tf

    height, width, channels = image.shape
    cos, sin = tf.cos(degrees * (math.pi / 180)), tf.sin(degrees * (math.pi / 180))
    x, y = tf.range(width, dtype=tf.float32) + 0.5 - width / 2, tf.range(height, dtype=tf.float32) + 0.5 - height / 2
    from_x, from_y = cos * x - sin * y[:, None] + width / 2, sin * x + cos * y[:, None] + height / 2
    # The position that the middle of the first pixel is read from.
    right, down = from_x[0, 0] - 0.5, from_y[0, 0] - 0.5
    turned = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([cos, -sin, right, sin, cos, down, 0.0, 0.0])[None],
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return tf.where(inside[..., None], _whole(turned), _fill(channels))


def shear(image: tf.Tensor, factor: tf.Tensor, axis: int) -> tf.Tensor:
    """Slides each row along axis 1, or each column along axis 0, in proportion to its position."""
    import tensorflow as tf

    place = tf.range(image.shape[1 - axis], dtype=tf.float32) + 0.5
    return _slid(image, axis, factor * tf.expand_dims(place, axis))


def translate(image: tf.Tensor, share: tf.Tensor, axis: int) -> tf.Tensor:
    """Slides an image along an axis by a share of its size."""
    import tensorflow as tf

    return _slid(image, axis, tf.reshape(share * image.shape[axis], (1, 1)))


def _slid(image, axis: int, offset):
    """Takes each pixel from a place further along an axis.

    This takes a fifth of the time of an affine transformation, which computes the position of every value.

    Args:
        image: `(height, width, channels)`.
        axis: 0 for the height, 1 for the width.
        offset: Pixels `(height, 1)`, `(1, width)` or `(1, 1)` to go along it; constant along the axis.
    """
    import tensorflow as tf

    height, width, channels = image.shape
    y, x = tf.range(height)[:, None], tf.range(width)[None]
    place, whole = (y, x)[axis], tf.floor(offset)
    middle = tf.cast(place, tf.float32) + offset + 0.5
    inside = (middle >= 0) & (middle < image.shape[axis])
    # The fill is one more pixel after the last.
    pixels = tf.concat([tf.reshape(image, (-1, channels)), _fill(channels)[None]], 0)

    def taken(step):
        along = tf.clip_by_value(place + tf.cast(whole, tf.int32) + step, 0, image.shape[axis] - 1)
        index = along * width + x if axis == 0 else y * width + along
        return _rows(tf.gather(pixels, tf.where(inside, index, height * width)))

    near, far, share = taken(0), taken(1), offset - whole
    if share.shape[1] > 1:
        share = tf.repeat(share, channels, 1)
    return _whole(tf.reshape(near + share * (far - near), image.shape))


def _rows(image):
    import tensorflow as tf

    return tf.reshape(image, (image.shape[0], -1))


def _row(values, image):
    """Repeats the values of the channels for one of `_rows`."""
    import tensorflow as tf

    return tf.tile(values, [image.shape[1]])


def _of_channels(reduce, image):
    """Reduces each channel to a value; over rows first, which is several times faster than all at once."""
    import tensorflow as tf

    return reduce(tf.reshape(reduce(_rows(image), 0), image.shape[1:]), 0)


def _reached(image, threshold):
    """Returns 1 where a whole value is at least the threshold, and 0 elsewhere."""
    import tensorflow as tf

    return tf.clip_by_value(image - (threshold - 1), 0, 1)


def _blended(start, end, factor):
    """Blends two images; a factor above 1 extrapolates."""
    import tensorflow as tf

    return _whole(tf.clip_by_value(start + factor * (end - start), 0, 255))


def _whole(image):
    """Rounds down, as Pillow does."""
    import tensorflow as tf

    return tf.floor(image + _EPSILON)


def _fill(channels: int):
    import tensorflow as tf

    return tf.constant(FILL if channels == 3 else (GREY_FILL,) * channels)


def _signed(scale: float):
    return lambda magnitude, sign: sign * magnitude * scale


def _factor(magnitude, sign):
    import tensorflow as tf

    return tf.maximum(1 + sign * magnitude * 0.09, 0.1)


def _bits(magnitude, sign):
    import tensorflow as tf

    return tf.maximum(4 - tf.floor(magnitude * 0.4), 1)


def _threshold(magnitude, sign):
    import tensorflow as tf

    return 256 - tf.floor(magnitude * 25.6)


def _amount(magnitude, sign):
    import tensorflow as tf

    return tf.floor(magnitude * 11)


#: Every operation, by timm's name for it.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(apply=auto_contrast),
    "Equalize": Operation(apply=equalize),
    "Invert": Operation(apply=invert),
    "Rotate": Operation(apply=rotate, strength=_signed(3.0)),
    "PosterizeIncreasing": Operation(apply=posterize, strength=_bits),
    "SolarizeIncreasing": Operation(apply=solarize, strength=_threshold),
    "SolarizeAdd": Operation(apply=solarize_add, strength=_amount),
    "ColorIncreasing": Operation(apply=color, strength=_factor),
    "ContrastIncreasing": Operation(apply=contrast, strength=_factor),
    "BrightnessIncreasing": Operation(apply=brightness, strength=_factor),
    "SharpnessIncreasing": Operation(apply=sharpness, strength=_factor),
    "ShearX": Operation(apply=functools.partial(shear, axis=1), strength=_signed(0.03)),
    "ShearY": Operation(apply=functools.partial(shear, axis=0), strength=_signed(0.03)),
    "TranslateXRel": Operation(apply=functools.partial(translate, axis=1), strength=_signed(0.045)),
    "TranslateYRel": Operation(apply=functools.partial(translate, axis=0), strength=_signed(0.045)),
}
