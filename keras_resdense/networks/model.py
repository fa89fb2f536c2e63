"""The model that builders return: Keras's own, but for how `predict` reads arrays."""

from __future__ import annotations

import keras
import numpy as np
from keras.src.models.functional import Functional

from keras_resdense.data.tfdata import prefetch
from keras_resdense.networks.drop_ins import saved_as

#: Images of a batch where none is named: Keras's.
BATCH = 32


@saved_as("keras.src.models.functional.Functional")
class Model(Functional):
    """Keras's functional model, whose `predict` loses no time between arrays and network.

    Keras makes a data set of an array, and has TensorFlow look for its numbers of threads. To end such a data set can
    take longer than the network takes for some images, see `prefetch`.

    A saved model names Keras's class, so it opens without this package.
    """

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        if _is_images(x):
            x, batch_size = _batches(x, batch_size or BATCH), None
        return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)


def _is_images(x) -> bool:
    """Says whether these are arrays `(batch, height, width, channels)` for TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return isinstance(x, np.ndarray | tf.Tensor) and len(x.shape) == 4 and len(x) > 0


def _batches(x, size: int):
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return prefetch(tf.data.Dataset.from_tensor_slices(x).batch(size)).with_options(options)
