"""Whole epochs with validation: the share that is neither a training step nor evaluation's own computing.

    python benchmarks/epochs.py [--epochs 3] [--steps 468] [--validation-steps 79]

ResNet-20 trains on random images of 28 × 28 pixels, 128 at once, by a user's own `fit` on arrays. By default an epoch
has as many steps as one of Fashion-MNIST. TensorFlow's strategies stand beside `keras_resdense.strategy`, whose
data sets are untuned. The first epoch, which compiles, does not count; the others give a median and a maximum.
"""

import argparse
import statistics
import time

import keras_resdense  # isort: skip
import keras
import numpy as np
import tensorflow as tf

BATCH = 128


class Watch(keras.callbacks.Callback):
    """Measures of each epoch how long it takes, and how much of that is spent in steps of training and evaluation."""

    def __init__(self):
        super().__init__()
        self.epochs, self.began, self.inside, self.step = [], 0.0, 0.0, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.began, self.inside = time.perf_counter(), 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self.step = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.inside += time.perf_counter() - self.step

    on_test_batch_begin, on_test_batch_end = on_train_batch_begin, on_train_batch_end

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((time.perf_counter() - self.began, self.inside))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=468)
    parser.add_argument("--validation-steps", type=int, default=79)
    options = parser.parse_args()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategies = {
        # Ours come last: they take the tuning of device iterators from the whole process.
        "TensorFlow's, one device": lambda: tf.distribute.OneDeviceStrategy("/cpu:0"),
        "TensorFlow's, mirrored on two": lambda: tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]),
        "ours, one device": lambda: keras_resdense.strategy("none"),
        "ours, mirrored on two": lambda: keras_resdense.strategy("mirrored"),
    }
    random = np.random.default_rng(0)
    count = BATCH * options.steps
    images, labels = random.random((count, 28, 28, 1), "float32"), random.integers(0, 10, count)
    held_out = slice(0, BATCH * options.validation_steps)
    print("| strategy | seconds an epoch | not computing: median | maximum |\n|---|---:|---:|---:|")
    for name, make in strategies.items():
        with make().scope():
            model = keras_resdense.ResNet20(input_shape=(28, 28, 1), classes=10)
            model.compile("sgd", "sparse_categorical_crossentropy")
        watch = Watch()
        data = {"batch_size": BATCH, "validation_data": (images[held_out], labels[held_out])}
        model.fit(images, labels, epochs=1 + options.epochs, callbacks=[watch], verbose=0, **data)
        shares = [1 - inside / whole for whole, inside in watch.epochs[1:]]
        seconds = statistics.median(whole for whole, _ in watch.epochs[1:])
        print(f"| {name} | {seconds:.1f} | {statistics.median(shares):.1%} | {max(shares):.1%} |", flush=True)


if __name__ == "__main__":
    main()
