"""Two logical CPU devices, so that distribution is tested on any machine."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras_resdense  # noqa: F401, I001  # first: it chooses TensorFlow's kernels
import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(autouse=True)
def fresh_session():
    """Every test starts with the same seed and with layer names not yet taken."""
    # Collecting garbage, as is the default, takes longer than most tests.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
