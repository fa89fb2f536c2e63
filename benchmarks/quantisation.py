"""What quantisation costs trained networks, and what they win back if they learn in 8 bits.

    keras-resdense train --recipe fast --data fashion_mnist --name resnet20
    python benchmarks/quantisation.py saved_models/resnet20 [more runs …] [--calibration-images 256]

Each run is exported in float32 and in the four quantised forms and measured on all its held-out images. "stages"
are the signal-to-noise ratios, in decibels, at the end of each stage and at the output. Those of each layer of the
committed networks go to `noise.json`, for a picture of the documentation.

    python benchmarks/quantisation.py saved_models/resnet20 --learn 100

Weights of 8 and of 4 bits: accuracy as calibrated, after so many batches of quantisation-aware training, and that of
the exported file, which is compared with the network on all held-out images.
"""

import argparse
import dataclasses
import itertools
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from pages import add_json, cell, load, replace, save, table

from keras_resdense import quantisation_aware, runs
from keras_resdense.data.batches import take_images
from keras_resdense.data.plan import ExportImages, Plan
from keras_resdense.data.sources import load_data
from keras_resdense.exporting.export import export
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.quantisation import signal_to_noise
from keras_resdense.exporting.read import load_model
from keras_resdense.training import recipes

FORMATS = {
    "tflite": "float32",
    "tflite_float16": "float16",
    "tflite_dynamic": "dynamic",
    "tflite_int8": "int8",
    "tflite_int16x8": "int16×8",
}
#: Formats whose files name operations as that of float32 does.
REPORTED = ("tflite_dynamic", "tflite_int8", "tflite_int16x8")
#: Runs and formats whose noise in each layer is drawn.
DRAWN = ("resnet20_fashion_mnist", "densenetbc40_12_fashion_mnist")
DRAWN_FORMATS = ("tflite_int8", "tflite_int16x8")
#: Images that noise is measured on.
IMAGES = 32
#: How quantisation-aware training is done, and how many images set its first ranges.
BATCH, RATE, CALIBRATION = 128, 0.0005, 256


def stages(decibels: dict[str, float]) -> dict[str, float]:
    """Returns the ratio of the last operation of each stage, and of the last of all."""
    groups = itertools.groupby(decibels, lambda name: "".join(re.findall(r"stage\d+", name)[:1]))
    ends = {stage: decibels[list(names)[-1]] for stage, names in groups if stage}
    return ends | {"output": list(decibels.values())[-1]}


def measure(run: Path, calibration_images: int, noise: Path) -> dict[str, Any]:
    """Returns the measurements of a run's formats, and adds the noise of each layer to a file, if it is drawn."""
    recipe, _ = recipes.read(run / recipes.RECIPE_FILE)
    data = load_data(recipe.data)
    # Accuracy is what is asked for here: none is too low to be told.
    rows = [dataclasses.replace(EXPORTERS[name], tolerance=math.inf, threads=(2,)) for name in FORMATS]
    chosen = ExportImages(calibration_images=calibration_images, compared_images=data.test.count)
    found, layers = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        exports = runs.export_run(run, rows, chosen, Path(folder))
        size = load_model(run, compile=False).input_shape[1:3]
        contract = Plan(recipe=recipe, size=size, classes=len(data.class_names)).contract(data.image_shape[2])
        images, _ = take_images(data.test, contract, IMAGES)
        for name, made in zip(FORMATS, exports, strict=True):
            found[name] = {"accuracy": made.accuracy, "agreement": made.agreement, "bytes": made.size}
            if name in REPORTED:
                decibels = signal_to_noise(made.path, exports[0].path, images)
                found[name]["stages"] = stages(decibels)
                layers[name] = {layer: round(ratio, 1) for layer, ratio in decibels.items()}
    if run.name in DRAWN:
        save(noise, load(noise, {}) | {run.name: {name: layers[name] for name in DRAWN_FORMATS}})
    return {"run": run.name, "model": recipe.model, "data": recipe.data, "images": data.test.count} | {
        "calibration_images": calibration_images,
        "formats": found,
    }


def learn(run: Path, batches: int) -> dict[str, Any]:
    recipe, _ = recipes.read(run / recipes.RECIPE_FILE)
    data, model = load_data(recipe.data), load_model(run, compile=False)
    contract = model.image_contract
    train, classes = take_images(data.train, contract, batches * BATCH)
    test, labels = take_images(data.test, contract, data.test.count)
    floats, rows = accuracy(model, test, labels), {}
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
        own = aware.predict(test, verbose=0)
        steps = np.round(256 * np.abs(outputs - own)).max(axis=-1)
        agreement = float((outputs.argmax(-1) == own.argmax(-1)).mean())
        rows[bits] = {"calibrated": before, "learned": after, "file": made.accuracy, "agreement": agreement}
        rows[bits] |= {"equal": float((steps == 0).mean()), "near": float((steps <= 1).mean()), "bytes": made.size}
    return {"run": run.name, "model": recipe.model, "batches": batches, "float": floats, "bits": rows}


def tables(found: dict[str, list[dict]]) -> dict[str, str]:
    rows = []
    for one in found["formats"]:
        exact = one["formats"]["tflite"]["accuracy"]
        for name, made in one["formats"].items():
            *ends, output = made.get("stages", {"": None}).values()
            same = "" if name == "tflite" else f"{made['agreement']:.2%}"
            lost = "" if name == "tflite" else f"{100 * (exact - made['accuracy']):.2f}"
            cells = (f"{made['accuracy']:.2%}", lost, same, ", ".join(f"{ratio:.0f}" for ratio in ends))
            rows.append((one["model"] if name == "tflite" else "", FORMATS[name], *cells, cell(output, ".1f")))
    header = ("network", "format", "accuracy", "points lost", "same answer", "at the stages' ends, dB", "output, dB")
    learned = [
        (
            one["model"],
            f"{bits} bits",
            *(f"{made[key]:.2%}" for key in ("calibrated", "learned", "file", "agreement")),
            *(f"{made[key]:.1%}" for key in ("equal", "near")),
        )
        for one in found["learned"]
        for bits, made in one["bits"].items()
    ]
    words = ("network", "weights", "as calibrated", "learned", "file", "file gives the same answer", "outputs equal")
    texts = {"learned": table((*words, "within one step of 1/256"), learned, words=2)} if learned else {}
    return texts | ({"quantisation": table(header, rows, words=2)} if rows else {})


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    return float((model.predict(images, batch_size=BATCH, verbose=0).argmax(-1) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--calibration-images", type=int, default=256, help="default %(default)s")
    parser.add_argument(
        "--learn", type=int, metavar="BATCHES", help="train for so many batches, and measure that alone"
    )
    add_json(parser, __file__)
    options = parser.parse_args()
    found = load(options.json, {"formats": [], "learned": []})
    for run in options.runs:
        if options.learn:
            found["learned"] = replace(found["learned"], learn(run, options.learn), "run")
        else:
            measured = measure(run, options.calibration_images, options.json.with_name("noise.json"))
            found["formats"] = replace(found["formats"], measured, "run")
        save(options.json, found)
    for text in tables(found).values():
        print(f"{text}\n")


if __name__ == "__main__":
    main()
