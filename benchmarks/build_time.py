"""Compares the build time of every network that keras.applications also has, interleaved in one process.

    python benchmarks/build_time.py [--rounds 5]

Also prints the time of `import keras_resdense` after `import keras`, in fresh processes.
"""

import argparse
import compileall
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
from keras import applications
from pages import add_json, cell, describe, save, table

import keras_resdense
from keras_resdense.insight import stopwatch

PAIRS = {
    "resnet50v1": applications.ResNet50,
    "resnet101v1": applications.ResNet101,
    "resnet152v1": applications.ResNet152,
    "resnet50v2_keras": applications.ResNet50V2,
    "resnet101v2_keras": applications.ResNet101V2,
    "resnet152v2_keras": applications.ResNet152V2,
    "densenet121": applications.DenseNet121,
    "densenet169": applications.DenseNet169,
    "densenet201": applications.DenseNet201,
}


def seconds(build: Callable[[], object]) -> float:
    keras.backend.clear_session()
    start = time.perf_counter()
    build()
    return time.perf_counter() - start


def seconds_to_import() -> float:
    """Times the import with compiled files, which an installed package always has."""
    timed = "import keras, time; start = time.perf_counter(); import keras_resdense; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)


def tables(found: dict) -> dict[str, str]:
    rows = []
    for variant, pairs in found["networks"].items():
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append((variant, cell(ours), cell(theirs), cell(statistics.median(a / b for a, b in pairs))))
    measured = f"Measured on {describe(found['machine'])} with Keras {found['keras']}. Rounds: {found['rounds']}."
    imported = f"Importing the package after Keras takes {statistics.median(found['import']):.3f} s."
    header = ("network", "ours, s", "keras.applications', s", "ratio")
    return {"build_time": f"{measured} {imported}\n\n{table(header, rows)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each pair; default %(default)s")
    add_json(parser, __file__)
    options = parser.parse_args()

    found = {"machine": stopwatch.machine(), "keras": keras.__version__, "rounds": options.rounds, "networks": {}}
    for variant, theirs in PAIRS.items():
        found["networks"][variant] = [
            (seconds(partial(keras_resdense.create_model, variant)), seconds(partial(theirs, weights=None)))
            for _ in range(options.rounds)
        ]
        print(f"{variant}: {found['networks'][variant]}", flush=True)
    compileall.compile_dir(Path(keras_resdense.__file__).parent, quiet=1)
    found["import"] = [seconds_to_import() for _ in range(options.rounds)]
    save(options.json, found)
    print(tables(found)["build_time"])


if __name__ == "__main__":
    main()
