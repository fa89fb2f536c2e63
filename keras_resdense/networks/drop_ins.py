"""Drop-in replacements of Keras's classes: the same numbers, faster on TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    from keras_resdense.networks import kernels
else:
    kernels = None


Kind = TypeVar("Kind", bound=type)


def saved_as(name: str) -> Callable[[Kind], Kind]:
    """Makes saved models name Keras's class instead of the decorated one, so that they open without this package.

    Args:
        name: Module and class, such as "keras.layers.Conv2D": Keras writes both into its files.
    """

    def rename(kind: Kind) -> Kind:
        kind.__module__, _, kind.__name__ = name.rpartition(".")
        return kind

    return rename


@saved_as("keras.layers.BatchNormalization")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm on TensorFlow's fused kernels.

    It has the same arguments and weights as `keras.layers.BatchNormalization` and computes the same numbers, in
    training and inference, in float32 and mixed precision. Keras's own code runs where the kernels do not apply:
    other backends, a rank or axis other than `(batch, height, width, channels)`, masks, synchronised statistics,
    renormalisation and float64.

    Under a `tf.distribute` strategy, all replicas share one moving average, the mean over the replicas. In Keras's
    layer each replica keeps its own, and only the first replica's is evaluated and saved.

    A saved model names Keras's class, so it opens without this package.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        with averaged_over_replicas():
            super().build(input_shape)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is not None or not self._fits_fused_kernel(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        channels = inputs.shape[-1]
        inputs = tf.cast(inputs, self.compute_dtype)
        scale = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones([channels])
        offset = tf.convert_to_tensor(self.beta) if self.center else tf.zeros([channels])
        if not (training and self.trainable):
            moments = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
            return kernels.scale_and_shift(inputs, scale, offset, *moments, self.epsilon)
        outputs, mean, variance = self._normalise_batch(inputs, scale, offset)
        self.moving_mean.assign(_decayed(self.moving_mean, mean, self.momentum))
        self.moving_variance.assign(_decayed(self.moving_variance, variance, self.momentum))
        return outputs

    def _normalise_batch(self, inputs: Any, scale: Any, offset: Any) -> tuple[Any, Any, Any]:
        """Returns a batch normalised by its own statistics, and these."""
        return kernels.batch_normalise(inputs, scale, offset, self.epsilon)

    def _fits_fused_kernel(self, inputs: Any) -> bool:
        return (
            kernels is not None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and not self.synchronized
            and not getattr(self, "renorm", False)  # Older versions of Keras lack it.
            and self.variable_dtype == "float32"
            and self.compute_dtype in ("float32", "bfloat16", "float16")
        )


@saved_as("keras.initializers.RandomNormal")
class RandomNormal(keras.initializers.RandomNormal):
    """Keras's initializer in a third of the time on a CPU: it draws from 65,536 quantiles of the distribution."""

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Any:
        generated = isinstance(self.seed, keras.random.SeedGenerator)
        seed = keras.ops.convert_to_numpy(self.seed.next()) if generated else self.seed
        draws = np.random.default_rng(seed).integers(0, _QUANTILES, size=shape, dtype=np.uint16)
        values = np.take(self.mean + self.stddev * _normal_quantiles(), draws)
        return keras.ops.convert_to_tensor(values, dtype=dtype or keras.config.floatx())


@saved_as("keras.optimizers.SGD")
class SGD(keras.optimizers.SGD):
    """Keras's SGD in one TensorFlow operation for each variable, where Keras has about ten.

    It has the same arguments and variables as `keras.optimizers.SGD` and computes the same numbers. The training step's
    graph has fewer operations, so it is traced sooner and takes less memory. Keras's own code runs without momentum and
    on other backends.

    A saved model names Keras's class, so it opens without this package.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if not self.momentum or kernels is None:
            super().update_step(gradient, variable, learning_rate)
            return
        import tensorflow as tf

        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


#: What drops in for the classes that a file names.
DROP_INS: dict[str, type] = {kind.__name__: kind for kind in (BatchNormalization, RandomNormal, SGD)}
_QUANTILES = 2**16


@functools.cache
def _normal_quantiles() -> np.ndarray:
    inverse = statistics.NormalDist().inv_cdf
    upper = np.array([inverse((index + 0.5) / _QUANTILES) for index in range(_QUANTILES // 2, _QUANTILES)], "float32")
    return np.concatenate([-upper[::-1], upper])


@contextlib.contextmanager
def averaged_over_replicas() -> Iterator[None]:
    """Makes replicas share the mean of what they assign to untrained variables that are created in this context."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    def averaged(options: dict) -> dict:
        return options if options["trainable"] else options | {"aggregation": tf.VariableAggregation.MEAN}

    with tf.variable_creator_scope(lambda create, **options: create(**averaged(options))):
        yield


def _decayed(average, value, momentum: float):
    return average * momentum + value * (1.0 - momentum)
