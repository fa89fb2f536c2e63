"""TensorFlow's fused batch norm, and what dense networks gain from knowing what a tensor was made of.

A dense block normalises each feature map once for every later layer. The statistics of a channel are the
same each time, so a concatenation carries a note of its parts, and those of a part are computed once. With
the same notes, a convolution can forget what it read and compute it again for its gradient (1707.06990).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

#: Channels that vector instructions take at once; oneDNN is up to seven times as slow for other numbers of them.
_LANES = 16
#: Attributes of tensors: what they are a concatenation of; their channels' moments; how they were normalised; how what
#: was rectified to make them had been.
_PARTS, _MOMENTS, _NORMALISED, _RECTIFIED = (f"_resdense_{note}" for note in ("parts", "moments", "normalised", "relu"))


@dataclasses.dataclass(frozen=True)
class _Normalised:
    """How a batch norm made its outputs."""

    arguments: tuple
    epsilon: float


def remember_parts(x, parts) -> None:
    """Notes on a concatenation of channels what it was made of."""
    setattr(x, _PARTS, parts)


def remember_rectified(before, after) -> None:
    """Notes on a rectified tensor how what was rectified had been normalised."""
    if hasattr(before, _NORMALISED):
        setattr(after, _RECTIFIED, getattr(before, _NORMALISED))


def scale_and_shift(x, scale, offset, mean, variance, epsilon: float):
    """Returns `scale * (x - mean) / sqrt(variance + epsilon) + offset`, of channels, in one pass over x."""
    wide, *vectors = _widened(x, scale, offset, mean, variance)
    scale, offset, mean, variance = vectors
    outputs = tf.raw_ops.FusedBatchNormV3(
        x=wide, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y
    return _shaped(outputs, x)


def batch_normalise(x, scale, offset, epsilon: float):
    """Normalises a batch by its own statistics.

    Args:
        x: Batch `(batch, height, width, channels)`.
        scale: γ `(channels,)`.
        offset: β `(channels,)`.
        epsilon: Added to the variance.

    Returns:
        The normalised batch, and mean and biased variance of each channel.
    """
    if hasattr(x, _PARTS):
        mean, variance = _moments(x)
        arguments = (x, scale, offset, mean, variance)
        outputs = _normalise(*arguments, epsilon)
        setattr(outputs, _NORMALISED, _Normalised(arguments, epsilon))
        return outputs, mean, variance
    return _normalise_and_measure(x, scale, offset, epsilon)


def convolve_recomputing(x, kernel, convolve: Callable):
    """Convolves, and keeps for the gradient not what it reads but what that was made of.

    Args:
        x: Batch `(batch, height, width, channels)`.
        kernel: Of the convolution.
        convolve: Takes both.

    Returns:
        What `convolve` does, with the same gradients.
    """
    origin = getattr(x, _RECTIFIED, None)
    outputs = convolve(x, kernel) if origin is None else _convolve_recomputing(kernel, convolve, origin)
    # It has no parts, and yet is to be remembered where it is normalised.
    remember_parts(outputs, ())
    return outputs


def _convolve_recomputing(kernel, convolve: Callable, origin: _Normalised):
    first, *others = _leaves(origin.arguments[0])

    def forward(kernel, *arguments):
        return convolve(tf.nn.relu(_normalise(*arguments, origin.epsilon)), kernel)

    @tf.custom_gradient
    def compute(*arguments):
        kernel, _, *vectors = arguments

        def gradient(upstream):
            # Otherwise it would all be computed at once in the forward pass, and kept.
            with tf.control_dependencies([upstream]):
                kept = tf.identity(first)
            again = [kernel, tf.concat([kept, *others], -1), *vectors]
            with tf.GradientTape() as tape:
                tape.watch(again)
                outputs = forward(*again)
            return tape.gradient(outputs, again, upstream)

        return forward(*arguments), gradient

    return compute(kernel, *origin.arguments)


def _leaves(x):
    parts = getattr(x, _PARTS, ())
    for part in parts:
        yield from _leaves(part)
    if not parts:
        yield x


def _moments(x):
    """Returns mean and biased variance of each channel: of a concatenation, those of its parts."""
    if not hasattr(x, _MOMENTS):
        parts = getattr(x, _PARTS, None)
        found = [tf.concat(values, 0) for values in zip(*map(_moments, parts), strict=True)] if parts else _measure(x)
        setattr(x, _MOMENTS, found)
    return getattr(x, _MOMENTS)


@tf.custom_gradient
def _measure(x):
    """Returns mean and biased variance of each channel."""
    channels = x.shape[-1]
    ones = tf.ones([channels])
    # The outputs, and so scale, offset and epsilon, do not matter.
    _, *moments = _normalise_and_measure(*_widened(x, ones, ones), 1.0)
    means, variances = (tf.reshape(vector, [-1, channels]) for vector in moments)
    mean = tf.reduce_mean(means, 0)
    variance = tf.reduce_mean(variances + tf.square(means - mean), 0)

    def gradient(of_mean, of_variance):
        count = _pixels(x)
        return scale_and_shift(x, of_variance * 2.0 / count, of_mean / count, mean, ones, 0.0)

    return (mean, variance), gradient


def _normalise(x, scale, offset, mean, variance, epsilon: float):
    """`scale_and_shift` with gradients also for mean and variance, which the kernel takes for constants."""

    @tf.custom_gradient
    def compute(x, scale, offset, mean, variance):
        def gradient(upstream):
            wide, *vectors = _widened(x, scale, mean, variance)
            wide_scale, wide_mean, wide_variance = vectors
            to_x, *to_vectors, _, _ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=_widened(upstream)[0],
                x=wide,
                scale=wide_scale,
                reserve_space_1=wide_mean,
                reserve_space_2=wide_variance,
                reserve_space_3=tf.zeros([0]),
                epsilon=epsilon,
                is_training=False,
            )
            to_scale, to_offset = (tf.reduce_sum(tf.reshape(v, [-1, x.shape[-1]]), 0) for v in to_vectors)
            spread = variance + epsilon
            to_mean = -scale * tf.math.rsqrt(spread) * to_offset
            return _shaped(to_x, x), to_scale, to_offset, to_mean, -0.5 * scale * to_scale / spread

        return scale_and_shift(x, scale, offset, mean, variance, epsilon), gradient

    return compute(x, scale, offset, mean, variance)


def _normalise_and_measure(x, scale, offset, epsilon: float):
    """Returns the batch normalised by its own statistics, and mean and biased variance of each channel."""
    none = tf.zeros([0])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=none, variance=none, epsilon=epsilon, is_training=True
    )
    # The kernel returns the unbiased variance; Keras averages the biased one.
    return outputs, mean, variance * ((_pixels(x) - 1.0) / _pixels(x))


def _pixels(x):
    return tf.cast(tf.size(x, out_type=tf.int64) // x.shape[-1], tf.float32)


def _widened(x, *vectors):
    """Takes neighbouring pixels for more channels, as many as suit the kernels, where the image has room for it."""
    _, height, width, channels = x.shape
    repeats = _LANES // math.gcd(channels, _LANES)
    if repeats == 1 or not height or not width or height * width % repeats:
        return x, *vectors
    return tf.reshape(x, [1, 1, -1, channels * repeats]), *(tf.tile(vector, [repeats]) for vector in vectors)


def _shaped(wide, x):
    """Undoes `_widened` for a tensor of the shape of x."""
    return wide if wide.shape[-1] == x.shape[-1] else tf.reshape(wide, [-1, *x.shape[1:]])
