"""Devices and precision of a training."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from keras_resdense.checks import require_tensorflow
from keras_resdense.data.tfdata import untuned
from keras_resdense.training import workers


def strategy(name: str = "auto") -> Any:
    """Returns a `tf.distribute` strategy: build and compile under its `scope()`, then call `model.fit` as usual.

    Its data sets do not use TensorFlow's tuning, which can delay the end of an epoch by up to a minute.

    Args:
        name: "none" for one device; "mirrored" for all GPUs of this machine, or all its logical CPUs;
            "multiworker" for the machines that `TF_CONFIG` or SLURM name; "auto" to choose by the environment.

    Raises:
        ValueError: If the name is unknown, or there are no workers for "multiworker".
    """
    require_tensorflow("strategy")
    import tensorflow as tf

    _untune_device_iterators()
    if name == "multiworker" or (name == "auto" and workers.worker_count() > 1):
        return workers.multi_worker_strategy(_untuning(tf.distribute.MultiWorkerMirroredStrategy))
    gpus = tf.config.list_logical_devices("GPU")
    mirrored = _untuning(tf.distribute.MirroredStrategy)
    if name == "mirrored":
        return mirrored([device.name for device in gpus or tf.config.list_logical_devices("CPU")])
    if name == "auto" and gpus:
        return mirrored()
    if name in ("auto", "none"):
        return _untuning(tf.distribute.OneDeviceStrategy)("/gpu:0") if gpus else _one_processor()
    raise ValueError(f"strategy is {name!r}; it must be one of auto, none, mirrored, multiworker.")


def _untuning(kind: type) -> type:
    """Returns a subclass of a strategy whose data sets are not tuned."""

    class Untuning(kind):
        def experimental_distribute_dataset(self, dataset, options=None):
            return super().experimental_distribute_dataset(untuned(dataset), options)

    return functools.wraps(kind, updated=())(Untuning)


def _one_processor() -> Any:
    """Returns a strategy for one processor, which iterates over data sets themselves.

    TensorFlow's iterator for devices gains nothing here. It also sets glibc's M_TRIM_THRESHOLD to 128 kB for the whole
    process (seen in 2.21), so that the memory of every decoded image is given back and asked for again.
    """
    import tensorflow as tf

    class OneProcessor(tf.distribute.OneDeviceStrategy):
        def experimental_distribute_dataset(self, dataset, options=None):
            return untuned(dataset)

        def distribute_datasets_from_function(self, dataset_fn, options=None):
            return dataset_fn(tf.distribute.InputContext())

    return functools.wraps(tf.distribute.OneDeviceStrategy, updated=())(OneProcessor)("/cpu:0")


def _untune_device_iterators() -> None:
    """Turns off tuning for the data sets that TensorFlow creates for each device, which have no public options."""
    from tensorflow.python.data.ops import multi_device_iterator_ops as devices

    create = devices._create_device_dataset
    if not hasattr(create, "__wrapped__"):

        @functools.wraps(create)
        def create_untuned(*args):
            return untuned(create(*args))

        devices._create_device_dataset = create_untuned


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Sets Keras's dtype policy for the layers that are built in this context."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
