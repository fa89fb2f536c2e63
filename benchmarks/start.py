"""Compares how soon networks that keras.applications also has are built and used.

    python benchmarks/start.py [--rounds 5]

- Each network is built with both packages in turn, in one process.
- In fresh processes: the time from the start of Python to the first prediction, and to the end of the first training
  step, with Adam and 2 images of 224 × 224 pixels. Both packages take turns.
- In fresh processes: `import keras`, which is part of these times, and `import keras_resdense` after it.
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
#: Networks that are started in fresh processes.
STARTED = ("resnet50v1", "densenet121")
#: What is timed from the start of Python.
TASKS = {
    "first prediction": "model.predict(numpy.zeros((2, 224, 224, 3)), verbose=0)",
    "first training step": (
        "model.compile('adam', 'sparse_categorical_crossentropy');"
        "model.train_on_batch(numpy.zeros((2, 224, 224, 3)), numpy.zeros(2))"
    ),
}


def seconds(build: Callable[[], object]) -> float:
    keras.backend.clear_session()
    start = time.perf_counter()
    build()
    return time.perf_counter() - start


def printed(program: str) -> float:
    """Runs a program in a fresh process, and returns the number that it prints at its end.

    The modules are compiled already, as those of an installed package are.
    """
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return float(lines.splitlines()[-1])


def seconds_to_import() -> float:
    return printed("import keras, time; t = time.perf_counter(); import keras_resdense; print(time.perf_counter() - t)")


def seconds_until(end: str) -> float:
    """Times from the start of Python to the end of a line, before which Keras is imported."""
    start = time.time()
    return printed(f"import keras, numpy, time; {end}\nprint(time.time())") - start


def started(variant: str) -> dict[str, tuple[float, float]]:
    """Returns the seconds of each task: ours and keras.applications'."""
    ours = f"import keras_resdense; model = keras_resdense.create_model('{variant}'); "
    theirs = f"model = keras.applications.{PAIRS[variant].__name__}(weights=None); "
    return {name: (seconds_until(ours + task), seconds_until(theirs + task)) for name, task in TASKS.items()}


def paired(pairs: list) -> tuple[str, str, str]:
    """Returns the cells of a table: medians of both, and of the ratio."""
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return cell(ours), cell(theirs), cell(statistics.median(b / a for a, b in pairs))


def tables(found: dict) -> dict[str, str]:
    built = [(variant, *paired(pairs)) for variant, pairs in found["networks"].items()]
    tasks = [
        (variant, task, *paired([each[task] for each in rounds]))
        for variant, rounds in found["started"].items()
        for task in TASKS
    ]
    measured = f"Measured on {describe(found['machine'])} with Keras {found['keras']}. Rounds: {found['rounds']}."
    imported = (
        f"Importing Keras and TensorFlow takes {statistics.median(found['keras_import']):.2f} s of these times, "
        f"importing the package after them {statistics.median(found['import']):.3f} s."
    )
    columns = ("ours, s", "keras.applications', s", "theirs over ours")
    return {
        "start": f"{measured} {imported}\n\n{table(('network', 'from the start of Python', *columns), tasks, words=2)}",
        "build_time": table(("network built", *columns), built),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each pair; default %(default)s")
    add_json(parser, __file__)
    options = parser.parse_args()

    compileall.compile_dir(Path(keras_resdense.__file__).parent, quiet=1)
    found = {"machine": stopwatch.machine(), "keras": keras.__version__, "rounds": options.rounds, "networks": {}}
    found["started"] = {variant: [started(variant) for _ in range(options.rounds)] for variant in STARTED}
    print(found["started"], flush=True)
    for variant, theirs in PAIRS.items():
        found["networks"][variant] = [
            (seconds(partial(keras_resdense.create_model, variant)), seconds(partial(theirs, weights=None)))
            for _ in range(options.rounds)
        ]
        print(f"{variant}: {found['networks'][variant]}", flush=True)
    found["keras_import"] = [seconds_until("") for _ in range(options.rounds)]
    found["import"] = [seconds_to_import() for _ in range(options.rounds)]
    save(options.json, found)
    print(*tables(found).values(), sep="\n\n")


if __name__ == "__main__":
    main()
