"""What quantisation costs trained networks, and what they win back if they learn in 8 bits.

    keras-resdense train --recipe fast --data fashion_mnist --name resnet20
    python benchmarks/quantisation.py saved_models/resnet20 [more runs …] [--calibration-images 256]

Each run is exported in float32 and in the four quantised forms and measured on all its held-out images. "stages"
are the signal-to-noise ratios, in decibels, at the end of each stage and at the output.

    python benchmarks/quantisation.py saved_models/resnet20 --learn 100 [--json FILE]

A line for weights of 8 and of 4 bits: accuracy as calibrated, after so many batches of quantisation-aware training, and
that of the exported file, which is compared with the network on all held-out images.
"""

import argparse
import dataclasses
import itertools
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resdense import quantisation_aware, runs
from keras_resdense.data.batches import take_images
from keras_resdense.data.plan import ExportImages, Plan
from keras_resdense.data.sources import load_data
from keras_resdense.exporting.export import export
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.quantisation import signal_to_noise
from keras_resdense.exporting.read import load_model
from keras_resdense.training import recipes

FORMATS = ("tflite", "tflite_float16", "tflite_dynamic", "tflite_int8", "tflite_int16x8")
#: Formats whose files name operations as that of float32 does.
REPORTED = ("tflite_dynamic", "tflite_int8", "tflite_int16x8")
#: Images that noise is measured on.
IMAGES = 32
#: How quantisation-aware training is done, and how many images set its first ranges.
BATCH, RATE, CALIBRATION = 128, 0.002, 256


def stages(decibels: dict[str, float]) -> dict[str, float]:
    """Returns the ratio of the last operation of each stage, and of the last of all."""
    groups = itertools.groupby(decibels, lambda name: "".join(re.findall(r"stage\d+", name)[:1]))
    ends = {stage: decibels[list(names)[-1]] for stage, names in groups if stage}
    return ends | {"output": list(decibels.values())[-1]}


def measure(run: Path, calibration_images: int) -> None:
    recipe, _ = recipes.read(run / recipes.RECIPE_FILE)
    data = load_data(recipe.data)
    # Accuracy is what is asked for here: none is too low to be told.
    rows = [dataclasses.replace(EXPORTERS[name], tolerance=math.inf, threads=(2,)) for name in FORMATS]
    chosen = ExportImages(calibration_images=calibration_images, compared_images=data.test.count)
    with tempfile.TemporaryDirectory() as folder:
        exports = runs.export_run(run, rows, chosen, Path(folder))
        size = load_model(run, compile=False).input_shape[1:3]
        contract = Plan(recipe=recipe, size=size, classes=len(data.class_names)).contract(data.image_shape[2])
        images, _ = take_images(data.test, contract, IMAGES)
        print(f"\n{run.name}: {recipe.model}, {data.test.count:,} images, {calibration_images} for calibration\n")
        print("| format | accuracy | loss in points | agreement | MB | stages |\n|---|---:|---:|---:|---:|---|")
        for name, made in zip(FORMATS, exports, strict=True):
            ends = stages(signal_to_noise(made.path, exports[0].path, images)) if name in REPORTED else {}
            lost = 100 * (exports[0].accuracy - made.accuracy)
            print(
                f"| {name} | {made.accuracy:.2%} | {lost:.2f} | {made.agreement:.2%} | {made.size / 1e6:.2f} |"
                f" {', '.join(f'{stage} {ratio:.1f}' for stage, ratio in ends.items())} |",
                flush=True,
            )


def learn(run: Path, batches: int) -> dict[str, Any]:
    recipe, _ = recipes.read(run / recipes.RECIPE_FILE)
    data, model = load_data(recipe.data), load_model(run, compile=False)
    contract = model.image_contract
    train, classes = take_images(data.train, contract, batches * BATCH)
    test, labels = take_images(data.test, contract, data.test.count)
    floats, rows = accuracy(model, test, labels), {}
    print(f"\n{run.name}: {recipe.model}, {floats:.2%} in floats, {batches} batches of {BATCH}\n")
    print("| bits | as calibrated | learned | file | MB | ms an image | same answer as the network | its steps off |")
    print("|---:|---:|---:|---:|---:|---:|---:|---|")
    for bits in (8, 4):
        aware = quantisation_aware(model, train[:CALIBRATION], weight_bits=bits)
        before = accuracy(aware, test, labels)
        rate = keras.optimizers.schedules.CosineDecay(RATE, batches)
        aware.compile(keras.optimizers.SGD(rate, 0.9, nesterov=True), "sparse_categorical_crossentropy")
        aware.fit(train, classes, batch_size=BATCH, verbose=0)
        after = accuracy(aware, test, labels)
        with tempfile.TemporaryDirectory() as folder:
            made = export(aware, Path(folder) / "m.tflite", "tflite_int8", test, labels)
            outputs = EXPORTERS["tflite_int8"].read(made.path, 2)(test)
        off = np.abs(outputs - aware.predict(test, verbose=0)).max(axis=-1) * 256
        shares = ", ".join(f"≤ {most}: {(off <= most).mean():.1%}" for most in (0, 1, 4))
        print(
            f"| {bits} | {before:.2%} | {after:.2%} | {made.accuracy:.2%} | {made.size / 1e6:.2f} |"
            f" {min(made.latency.values()):.2f} | {made.agreement:.2%} | {shares}, most {off.max():.0f} |",
            flush=True,
        )
        rows[bits] = {"calibrated": before, "learned": after, "file": made.accuracy}
    return {"model": recipe.model, "batches": batches, "float": floats, "bits": rows}


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    return float((model.predict(images, batch_size=BATCH, verbose=0).argmax(-1) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--calibration-images", type=int, default=256, help="default %(default)s")
    parser.add_argument(
        "--learn", type=int, metavar="BATCHES", help="train for so many batches, and measure that alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --learn: write the accuracies to a file")
    options = parser.parse_args()
    if options.learn:
        learned = [learn(run, options.learn) for run in options.runs]
        if options.json:
            options.json.write_text(json.dumps(learned, indent=2) + "\n")
    else:
        for run in options.runs:
            measure(run, options.calibration_images)


if __name__ == "__main__":
    main()
