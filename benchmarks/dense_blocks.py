"""Training steps of dense networks, formulated in four ways that compute the same.

    python benchmarks/dense_blocks.py [--networks densenetbc40_12 …] [--batch 32] [--rounds 5] [--steps 4]

"plain" is Keras's own layers; "fused" has batch norm on TensorFlow's fused kernels; "shared" computes the statistics of
a channel once, and gives the kernels widths that suit them, as the package does; "memory-efficient" computes what
convolutions read again for their gradients. They take turns, and each ratio is the median of its time over "fused".
"""

import argparse
import contextlib
import dataclasses
import statistics
from unittest import mock

import keras
import numpy as np

import keras_resdense
from keras_resdense.insight import stopwatch
from keras_resdense.networks import kernels, layers

PLAIN = [mock.patch.object(layers, name, getattr(keras.layers, name)) for name in ("BatchNormalization", "Concatenate")]
FORGETFUL = [mock.patch.object(kernels, "remember_parts", lambda x, parts: None)]
FORMS = {"fused": FORGETFUL, "plain": PLAIN, "shared": [], "memory-efficient": []}


def trained(network: str, form: str, images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """Returns a network that has made its first steps in one of the forms, and stays in it."""
    row = keras_resdense.VARIANTS[network]
    if form == "memory-efficient":
        row = dataclasses.replace(row, memory_efficient=True)
    with contextlib.ExitStack() as stack:
        for patch in FORMS[form]:
            stack.enter_context(patch)
        model = keras_resdense.create_model(row, input_shape=images.shape[1:])
        stopwatch.compile_model(model)
        stopwatch.fit_seconds(model, images, labels, 1)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["densenetbc40_12", "densenetbc100_12"])
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels; default %(default)s")
    for name, default in (("batch", 32), ("rounds", 5), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default %(default)s")
    options = parser.parse_args()

    images, labels = stopwatch.random_batch(options.batch, options.side, classes=10)
    for network in options.networks:
        models = {form: trained(network, form, images, labels) for form in FORMS}
        times = {form: [] for form in FORMS}
        for _ in range(options.rounds):
            for form, model in models.items():
                times[form].append(statistics.median(stopwatch.fit_seconds(model, images, labels, options.steps)))
        print(f"\n{network}, {options.side} × {options.side}, batch {options.batch}")
        for form, found in times.items():
            ratios = [own / base for own, base in zip(found, times["fused"], strict=True)]
            print(f"  {form:18}{statistics.median(found) * 1000:8.0f} ms  ratio {statistics.median(ratios):.2f}"
                  f" ({min(ratios):.2f}–{max(ratios):.2f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
