"""Measures the cost of training on a device: size, memory and time of a step, with LiteRT only, on Linux.

    python benchmarks/learning.py [--batch 10] [--size 224] NAMES …

A name is a run's folder or a variant, which gets random weights. The head learns, or the last stage.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pages import add_json, describe, save, table

import keras_resdense
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.read import load_model
from keras_resdense.exporting.trainable import LEARNS
from keras_resdense.insight import stopwatch

#: Program that measures a file. Memory is the peak of its process in MB, beyond that without a file.
DEVICE = """
import json, statistics, sys, time
import numpy
from ai_edge_litert.interpreter import Interpreter
def memory():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
start = memory()
interpreter = Interpreter(sys.argv[1], num_threads=1)
shapes = {key: interpreter.get_signature_runner(key).get_input_details() for key in ("infer", "train")}
def run(key, **inputs):
    for name, details in shapes[key].items():
        inputs.setdefault(name, numpy.ones(details["shape"], details["dtype"]))
    return interpreter.get_signature_runner(key)(**inputs)
run("infer")
answering = memory() - start
times = []
for _ in range(6):
    before = time.perf_counter()
    run("train", learning_rate=numpy.float32(1e-3))
    times.append(1000 * (time.perf_counter() - before))
weights = interpreter.get_signature_runner("save")()["weights"]
print(json.dumps({
    "weights": weights.nbytes, "predict_mb": answering, "train_mb": memory() - start,
    "step_ms": statistics.median(times[1:]),
}))
"""


def tables(found: dict) -> dict[str, str]:
    rows = (
        (
            one["network"],
            one["learns"],
            f"{one['bytes'] / 1e6:.2f} MB",
            f"{one['weights'] / 1e3:,.0f} kB",
            f"{one['predict_mb']:.1f} MB",
            f"{one['train_mb']:.1f} MB",
            f"{one['step_ms']:.1f} ms",
        )
        for one in found["files"]
    )
    header = ("network", "trained", "file", "saved weights", "memory to predict", "memory to train", "time per step")
    measured = f"Measured on one of {describe(found['machine'])}, in batches of {found['batch']} images."
    return {"learning": f"{measured}\n\n{table(header, rows, words=2)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--size", type=int, default=224)
    add_json(parser, __file__)
    options = parser.parse_args()
    found = {"machine": stopwatch.machine(), "batch": options.batch, "files": []}
    for name in options.names:
        model = (
            load_model(Path(name), compile=False)
            if Path(name).is_dir()
            else keras_resdense.create_model(name, input_shape=(options.size, options.size, 3))
        )
        for learns in LEARNS:
            row = dataclasses.replace(EXPORTERS["tflite_trainable"], learns=learns, train_batch=options.batch)
            with tempfile.TemporaryDirectory() as folder:
                made = keras_resdense.export(model, f"{folder}/model.tflite", row)
                done = subprocess.run(
                    [sys.executable, "-c", DEVICE, str(made.path)], check=True, capture_output=True, text=True
                )
            row = {"network": model.name, "learns": learns, "bytes": made.size} | json.loads(done.stdout)
            print(row, flush=True)
            found["files"].append(row)
    save(options.json, found)
    print(tables(found)["learning"])


if __name__ == "__main__":
    main()
