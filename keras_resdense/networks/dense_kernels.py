"""Kernels for dense networks on TensorFlow, which use how a tensor was made.

A dense block normalises each feature map again in every later layer, with the same statistics each time. So tensors
carry a note of the parts they concatenate and of the statistics of their channels, which are computed once. With these
notes, a convolution can also discard its input and recompute it for the gradient (1707.06990).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import tensorflow as tf

from keras_resdense.networks.kernels import Tensor, after, batch_normalise, pixels, scale_and_shift, shaped, widened


@dataclasses.dataclass
class Note:
    """What is known of a tensor.

    Attributes:
        parts: Tensors that it concatenates. An empty tuple marks a leaf: the next norm takes the shared-statistics
            path. None if no other tensor can use its statistics.
        moments: Mean and variance of its channels, once they are computed.
        normalised: How a batch norm computed it.
        rectified: How a batch norm computed the input of the ReLU that this tensor is the output of.
    """

    parts: tuple[Tensor, ...] | None = None
    moments: tuple[Tensor, Tensor] | None = None
    normalised: Normalised | None = None
    rectified: Normalised | None = None


@dataclasses.dataclass(frozen=True)
class Normalised:
    """How a batch norm computed its outputs."""

    arguments: tuple[Tensor, ...]
    epsilon: float


def note_of(x: Tensor) -> Note:
    """Returns the note on a tensor, or adds an empty one."""
    if not hasattr(x, "_resdense_note"):
        x._resdense_note = Note()
    return x._resdense_note


def normalise_shared(x: Tensor, scale: Tensor, offset: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises a batch as `batch_normalise` does, with statistics that are computed once for each of its parts."""
    if note_of(x).parts is None:
        return batch_normalise(x, scale, offset, epsilon)
    mean, variance = _moments(x)
    arguments = (x, scale, offset, mean, variance)
    outputs = _normalise(*arguments, epsilon)
    note_of(outputs).normalised = Normalised(arguments, epsilon)
    return outputs, mean, variance


def convolve_recomputing(x: Tensor, kernel: Tensor, convolve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Convolves a batch, and recomputes the batch for the gradient instead of keeping it.

    Args:
        x: Batch `(batch, height, width, channels)`.
        kernel: Kernel of the convolution.
        convolve: Function of both.

    Returns:
        The result of `convolve`, with the same gradients.
    """
    origin = note_of(x).rectified
    outputs = convolve(x, kernel) if origin is None else _convolve_recomputing(kernel, convolve, origin)
    note_of(outputs).parts = ()
    return outputs


def _convolve_recomputing(kernel: Tensor, convolve: Callable, origin: Normalised):
    first, *others = _leaves(origin.arguments[0])

    def forward(kernel, *arguments):
        return convolve(tf.nn.relu(_normalise(*arguments, origin.epsilon)), kernel)

    @tf.custom_gradient
    def compute(*arguments):
        kernel, _, *vectors = arguments

        def gradient(upstream):
            again = [kernel, tf.concat([after(upstream, first), *others], -1), *vectors]
            with tf.GradientTape() as tape:
                tape.watch(again)
                outputs = forward(*again)
            return tape.gradient(outputs, again, upstream)

        return forward(*arguments), gradient

    return compute(kernel, *origin.arguments)


def _leaves(x: Tensor) -> Iterator[Tensor]:
    parts = note_of(x).parts or ()
    for part in parts:
        yield from _leaves(part)
    if not parts:
        yield x


def _moments(x: Tensor):
    """Returns mean and biased variance of each channel; for a concatenation, it joins those of the parts."""
    note = note_of(x)
    if note.moments is None:
        parts = [_moments(part) for part in note.parts or ()]
        note.moments = tuple(tf.concat(values, 0) for values in zip(*parts, strict=True)) if parts else _measure(x)
    return note.moments


@tf.custom_gradient
def _measure(x: Tensor):
    """Returns mean and biased variance of each channel."""
    channels = x.shape[-1]
    ones = tf.ones([channels])
    # Only the moments are used, so scale, offset and epsilon do not matter.
    wide, *vectors = widened(x, ones, ones)
    _, mean, variance = batch_normalise(wide, *vectors, 1.0)
    if wide is not x:
        means, variances = (tf.reshape(vector, [-1, channels]) for vector in (mean, variance))
        mean = tf.reduce_mean(means, 0)
        variance = tf.reduce_mean(variances + tf.square(means - mean), 0)

    def gradient(of_mean, of_variance):
        count = pixels(x)
        return scale_and_shift(x, of_variance * 2.0 / count, of_mean / count, mean, ones, 0.0)

    return (mean, variance), gradient


def _normalise(x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor, epsilon: float):
    """Computes `scale_and_shift` with gradients for mean and variance, too, which the kernel treats as constants."""

    @tf.custom_gradient
    def compute(x, scale, offset, mean, variance):
        def gradient(upstream):
            wide, *vectors = widened(x, scale, mean, variance)
            wide_scale, wide_mean, wide_variance = vectors
            to_x, *to_vectors, _, _ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=widened(upstream)[0],
                x=wide,
                scale=wide_scale,
                reserve_space_1=wide_mean,
                reserve_space_2=wide_variance,
                reserve_space_3=tf.zeros([0]),
                epsilon=epsilon,
                is_training=False,
            )
            if wide is not x:
                to_vectors = [tf.reduce_sum(tf.reshape(vector, [-1, x.shape[-1]]), 0) for vector in to_vectors]
            to_scale, to_offset = to_vectors
            spread = variance + epsilon
            to_mean = -scale * tf.math.rsqrt(spread) * to_offset
            return shaped(to_x, x), to_scale, to_offset, to_mean, -0.5 * scale * to_scale / spread

        return scale_and_shift(x, scale, offset, mean, variance, epsilon), gradient

    return compute(x, scale, offset, mean, variance)
