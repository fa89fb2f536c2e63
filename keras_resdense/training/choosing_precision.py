"""Chooses the precision of a training for this machine: by a measurement on processors, by a table on GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable

import keras
import numpy as np

from keras_resdense.training.devices import precision

HALF, FULL = "mixed_bfloat16", "float32"
#: For each precision the least compute capability of the GPUs that have tensor cores for it: NVIDIA's CUDA C++
#: Programming Guide, "Compute Capabilities".
CAPABILITIES = {HALF: (8, 0), "mixed_float16": (7, 0), FULL: (0, 0)}
#: Largest share of a step's time in float32 that a step in half precision may take to be chosen.
FASTER = 0.95
#: Wall-clock seconds of a measurement without its warm-up. Every precision is measured at least once.
SECONDS = 1.0
#: Pixels in a measured batch, and the least number of images: more change the ratio little.
PIXELS, LEAST_IMAGES = 100_000, 4
#: A warm-up that takes so many times as long in half precision needs no measurement: without instructions for bfloat16,
#: TensorFlow can be 10 times as slow.
HOPELESS = 3.0
#: Seconds of a warm-up that do not count for that, because the first step in a precision also makes its kernels.
ONCE = 1.0


def choose_precision(build: Callable[[], keras.Model], batch: int) -> tuple[str, str]:
    """Chooses the precision in which this machine trains a network fastest.

    On processors it is mixed_bfloat16 if steps of the network measure at least 5 % faster in it, and float32 otherwise.
    On GPUs it is the first of mixed_bfloat16, mixed_float16 and float32 that all of them have tensor cores for.

    Args:
        build: Function that builds the network for an image size.
        batch: Images of a step on one device.

    Returns:
        The precision, and the reason as a sentence.
    """
    import tensorflow as tf

    if gpus := tf.config.get_visible_devices("GPU"):
        details = map(tf.config.experimental.get_device_details, gpus)
        least = min(detail.get("compute_capability", (0, 0)) for detail in details)
        policy = next(name for name, needed in CAPABILITIES.items() if least >= needed)
        return policy, f"The GPU has compute capability {least[0]}.{least[1]}."
    seconds, images = _seconds(build, batch)
    policy = HALF if seconds[HALF] <= FASTER * seconds[FULL] else FULL
    took = ", ".join(f"{value:.2f} s in {name}" for name, value in seconds.items())
    return policy, f"{images} images take {took}."


def _seconds(build: Callable[[], keras.Model], batch: int) -> tuple[dict[str, float], int]:
    """Returns the processor time of a step in each precision, and the number of its images.

    Steps are eager, because compiling would take longer than the measurement. Processor time hardly depends on other
    work on the machine, unlike time on the clock.
    """
    models = {}
    for policy in (FULL, HALF):
        with precision(policy):
            models[policy] = build()
    shape = models[FULL].input_shape[1:]
    count = min(batch, max(LEAST_IMAGES, PIXELS // (shape[0] * shape[1])))
    images = np.random.default_rng(0).uniform(0, 255, (count, *shape)).astype("float32")
    fastest = {policy: _timed(model, images) for policy, model in models.items()}
    if fastest[HALF] < HOPELESS * fastest[FULL] + ONCE:
        fastest = dict.fromkeys(models, np.inf)
        start = time.perf_counter()
        while fastest[HALF] == np.inf or time.perf_counter() - start < SECONDS:
            fastest = {policy: min(fastest[policy], _timed(model, images)) for policy, model in models.items()}
    return fastest, count


def _timed(model: keras.Model, images: np.ndarray) -> float:
    """Returns the seconds of processor time of a forward and a backward pass."""
    import tensorflow as tf

    start = time.process_time()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(images, training=True)))
    # Reading a gradient waits until it is computed.
    tape.gradient(loss, model.trainable_weights)[0].numpy()
    return time.process_time() - start
