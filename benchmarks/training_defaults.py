"""Time of a training step with XLA and with several steps in a call, over that without: what the defaults rest on.

    python benchmarks/training_defaults.py [--rounds 3] [--steps 10]

The four are interleaved in one process, on random images. The first call, which compiles, is timed apart.
"""

import argparse
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

import keras_resdense
from keras_resdense.data.tfdata import prefetch

#: Network, side of its images, and images in a batch.
CASES = {
    "ResNet-20": (keras_resdense.VARIANTS["resnet20"], 28, 128),
    "DenseNet-BC-40, k = 12": (keras_resdense.VARIANTS["densenetbc40_12"], 32, 64),
    "ResNet-18": (keras_resdense.VARIANTS["resnet18"], 64, 32),
}
#: Whether XLA compiles the step, and whether all steps are one call.
CHOICES = {"neither": (False, False), "calls": (False, True), "XLA": (True, False), "both": (True, True)}


def compiled(row, side: int, xla: bool, steps: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras_resdense.create_model(row, input_shape=(side, side, 3), classes=10)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=xla, steps_per_execution=steps)
    return model


def seconds(model: keras.Model, batches: tf.data.Dataset, steps: int) -> float:
    start = time.perf_counter()
    model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each; default %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="of a round; default %(default)s")
    options = parser.parse_args()

    print(f"keras {keras.__version__}, tensorflow {tf.__version__}, {len(tf.config.list_physical_devices('GPU'))} GPUs")
    print("| network | " + " | ".join(f"{name}: step, ms (ratio; first call, s)" for name in CHOICES) + " |")
    print("|---|" + "---:|" * len(CHOICES))
    for name, (row, side, batch) in CASES.items():
        images = np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype("float32")
        batches = prefetch(tf.data.Dataset.from_tensors((images, np.arange(batch) % 10)).repeat())
        models = {
            choice: compiled(row, side, xla, options.steps if together else 1)
            for choice, (xla, together) in CHOICES.items()
        }
        first = {choice: seconds(model, batches, options.steps) for choice, model in models.items()}
        rounds = [
            {choice: seconds(model, batches, options.steps) for choice, model in models.items()}
            for _ in range(options.rounds)
        ]
        cells = []
        for choice in CHOICES:
            step = statistics.median(times[choice] for times in rounds) / options.steps
            ratio = statistics.median(times[choice] / times["neither"] for times in rounds)
            cells.append(f"{step * 1e3:.0f} ({ratio:.2f}; {first[choice]:.0f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
