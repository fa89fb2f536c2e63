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

import keras_resdense

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each pair; default %(default)s")
    rounds = parser.parse_args().rounds

    print(f"keras {keras.__version__}; medians of {rounds} rounds\n{'variant':20}{'ours':>8}{'theirs':>8}{'ratio':>7}")
    for variant, theirs in PAIRS.items():
        pairs = [
            (seconds(partial(keras_resdense.create_model, variant)), seconds(partial(theirs, weights=None)))
            for _ in range(rounds)
        ]
        ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{variant:20}{ours:7.2f}s{peer:7.2f}s{ratio:7.2f}", flush=True)

    compileall.compile_dir(Path(keras_resdense.__file__).parent, quiet=1)
    added = statistics.median(seconds_to_import() for _ in range(rounds))
    print(f"import keras_resdense adds {added:.3f} s to import keras")


if __name__ == "__main__":
    main()
