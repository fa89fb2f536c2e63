"""Measures the cost of training on a device: size, memory and time of a step, with LiteRT only, on Linux.

    python benchmarks/learning.py [--batch 10] [--size 224] NAMES …

A name is a run's folder or a variant, which gets random weights. Prints a line for the head and one for the last stage.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import keras_resdense
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.read import load_model
from keras_resdense.exporting.trainable import LEARNS

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
print(json.dumps([weights.nbytes / 1e6, answering, memory() - start, statistics.median(times[1:])]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    print(f"{'network':36}{'learns':12}{'file':>10}{'saved':>10}{'answering':>12}{'learning':>12}{'a step':>12}")
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
            saved, answering, learning, step = json.loads(done.stdout)
            print(
                f"{Path(name).name:36}{learns:12}{made.size / 1e6:7.2f} MB{saved:7.2f} MB{answering:9.1f} MB"
                f"{learning:9.1f} MB{step:9.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
