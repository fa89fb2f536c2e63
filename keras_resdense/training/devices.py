"""Where and in which precision a training computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from keras_resdense.training import workers


def strategy(name: str = "auto"):
    """Returns a `tf.distribute` strategy: build and compile under its `scope()`, then call `model.fit` as usual.

    Args:
        name: "none" for one device; "mirrored" for all GPUs of this machine, or all its logical CPUs;
            "multiworker" for the machines that `TF_CONFIG` or SLURM name; "auto" for what fits.

    Raises:
        ValueError: If the name is another, or "multiworker" finds no workers.
    """
    import tensorflow as tf

    if name == "multiworker" or (name == "auto" and workers.worker_count() > 1):
        return workers.multi_worker_strategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored":
        return tf.distribute.MirroredStrategy([device.name for device in gpus or tf.config.list_logical_devices("CPU")])
    if name == "auto" and gpus:
        return tf.distribute.MirroredStrategy()
    if name in ("auto", "none"):
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    raise ValueError(f"strategy is {name!r}; it must be one of auto, none, mirrored, multiworker.")


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Lets Keras build layers that compute as `Settings.precision` says."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
