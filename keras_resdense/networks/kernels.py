"""Batch norm on TensorFlow's fused kernels, and recomputation for gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import tensorflow as tf

Tensor = tf.Tensor
#: Channels that a vector instruction processes. oneDNN is up to seven times slower if they don't divide the channels.
_LANES = 16


def scale_and_shift(x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    """Returns `scale * (x - mean) / sqrt(variance + epsilon) + offset` for each channel, in one pass over x."""
    wide, *vectors = widened(x, scale, offset, mean, variance)
    scale, offset, mean, variance = vectors
    outputs = tf.raw_ops.FusedBatchNormV3(
        x=wide, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y
    return shaped(outputs, x)


def batch_normalise(x: Tensor, scale: Tensor, offset: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises a batch by its own statistics.

    Args:
        x: Batch `(batch, height, width, channels)`.
        scale: γ `(channels,)`.
        offset: β `(channels,)`.
        epsilon: Added to the variance.

    Returns:
        The normalised batch, and mean and biased variance of each channel.
    """
    none = tf.zeros([0])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=none, variance=none, epsilon=epsilon, is_training=True
    )
    # The kernel returns the unbiased variance; Keras averages the biased one.
    count = pixels(x)
    return outputs, mean, variance * ((count - 1.0) / count)


def pixels(x: Tensor) -> Tensor | float:
    """Returns the number of pixels in a batch, as a float."""
    known = x.shape.num_elements()
    if known:
        return float(known // x.shape[-1])
    return tf.cast(tf.size(x, out_type=tf.int64) // x.shape[-1], tf.float32)


def widened(x: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
    """Reshapes neighbouring pixels into channels until these are a multiple of 16, if the image's size allows it."""
    _, height, width, channels = x.shape
    repeats = _LANES // math.gcd(channels, _LANES)
    if repeats == 1 or not height or not width or height * width % repeats:
        return x, *vectors
    return tf.reshape(x, [1, 1, -1, channels * repeats]), *(tf.tile(vector, [repeats]) for vector in vectors)


def shaped(wide: Tensor, x: Tensor) -> Tensor:
    """Undoes `widened`: returns a tensor of the shape of x."""
    return wide if wide.shape[-1] == x.shape[-1] else tf.reshape(wide, [-1, *x.shape[1:]])


def after(upstream: Tensor, x: Tensor) -> Tensor:
    """Returns x once a gradient has arrived.

    Otherwise TensorFlow would recompute from x during the forward pass, and keep the result.
    """
    with tf.control_dependencies([upstream]):
        return tf.identity(x)


def recomputed(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns `run(x)`, and keeps only x of it: the gradient runs it again."""

    @tf.custom_gradient
    def compute(x):
        def gradient(upstream, variables=()):
            kept = after(upstream, x)
            # In this scope, batch norms do not update their moving averages for a second time.
            with keras.StatelessScope(), tf.GradientTape() as tape:
                tape.watch(kept)
                outputs = run(kept)
            to_x, *to_variables = tape.gradient(outputs, [kept, *variables], upstream)
            return (to_x, to_variables) if variables else to_x

        return run(x), gradient

    return compute(x)
