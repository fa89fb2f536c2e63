"""Two logical CPU devices, so that distribution is tested on any machine."""

import gc
import os

# There is a process for each core: more threads than that only wait for one another.
os.environ.update(
    {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    | os.environ
)

import keras_resdense  # noqa: F401, I001  # first: it chooses TensorFlow's kernels
import keras
import pytest
import tensorflow as tf

from keras_resdense.data import checking

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# Building a graph makes millions of objects that live on. Python's default is to look through all of them so often
# that it costs a sixth of the tests' time.
gc.set_threshold(200_000, 50, 100)


@pytest.fixture(autouse=True)
def no_memory_of_checks(monkeypatch, tmp_path_factory):
    """Keeps the results of image checks out of the user's home."""
    memory = tmp_path_factory.mktemp("checked") / "memory.npz"
    monkeypatch.setattr(checking, "_memory", lambda root: memory)


@pytest.fixture(autouse=True)
def fresh_session(request):
    """Starts every test with the same seed and with unused layer names."""
    # Collecting garbage, as is the default, takes longer than most tests. The sweep builds networks by the hundred,
    # which would fill the memory.
    keras.utils.clear_session(free_memory=request.node.get_closest_marker("sweep") is not None)
    keras.utils.set_random_seed(0)
