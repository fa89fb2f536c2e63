"""Measures `keras-resdense predict` on a folder of JPEGs against the model alone.

    python benchmarks/predict_folder.py [--rounds 3]

The command classifies a small and a large folder. The difference is the time of the images between, without the start.
The model alone gets images that are prepared in memory, in its best batch. The decoder alone reads and decodes the same
files on all cores, without resizing. It limits small networks: at 28 pixels, most of the time goes into the files.
"""

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pages import HERE, add_json, cell, describe, save, table
from photos import make_images

import keras_resdense
from keras_resdense.data.checking import decode_fast, read_file
from keras_resdense.data.folder import image_files
from keras_resdense.insight import stopwatch
from keras_resdense.runs import opened

SAVED = HERE.parent / "saved_models" / "resnet20_fashion_mnist"
BATCHES = (8, 32, 128)
#: Goal of the command's share of the model's own speed.
GOAL = 0.9


def write_resnet50(folder: Path) -> Path:
    path = folder / "resnet50.keras"
    if not path.exists():
        model = keras_resdense.ResNet50()
        model.image_contract = keras_resdense.ImageContract(size=(224, 224), resize="shorter_side", crop=0.875)
        keras_resdense.export(model, path, "keras", np.zeros((1, 224, 224, 3), "float32"))
    return path


#: Model, its runtime, and how many images a round needs.
CASES: dict[str, tuple[Callable[[Path], Path], str | None, int]] = {
    "ResNet-20, `.tflite`": (lambda folder: SAVED / "model.tflite", None, 4000),
    "ResNet-20, `.keras`": (lambda folder: SAVED / "model.keras", None, 4000),
    "ResNet-50, `.keras`": (write_resnet50, None, 300),
    "ResNet-50, `.keras`, fastest runtime": (write_resnet50, "auto", 300),
}
SMALL = 100


def alone(model: Path, runtime: str | None) -> float:
    """Returns the images a second of a model in its best batch."""
    run = opened(model, runtime=runtime)
    images = np.random.default_rng(0).uniform(0, 255, (max(BATCHES), *run.input_shape[1:])).astype(run.dtype)
    best = 0.0
    for batch in BATCHES:
        times = stopwatch.seconds(lambda batch=batch: run.predict(images, batch_size=batch), 5)
        best = max(best, len(images) / statistics.median(times))
    return best


def command(model: Path, runtime: str | None, folder: Path) -> float:
    """Returns the seconds of the command for a folder."""
    words = [sys.executable, "-m", "keras_resdense", "predict", str(model), str(folder), "--format", "jsonl"]
    with tempfile.TemporaryDirectory() as place:
        answers = Path(place) / "answers.jsonl"
        start = time.perf_counter()
        subprocess.run(
            [*words, "--output", str(answers), *(["--runtime", runtime] if runtime else [])],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        found = len(answers.read_text().splitlines())
    expected = len(image_files(folder))
    if found != expected:
        raise SystemExit(f"{found} answers for {expected} images")
    return seconds


def decode(folder: Path) -> float:
    """Returns the images a second of the decoder on all cores."""
    files = image_files(folder)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        start = time.perf_counter()
        for _ in threads.map(lambda file: decode_fast(read_file(file)).shape, files):
            pass
        return len(files) / (time.perf_counter() - start)


def in_a_process(**arguments) -> float:
    words = [sys.executable, __file__, "--one", json.dumps(arguments)]
    return float(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def tables(found: dict) -> dict[str, str]:
    rows = []
    for name, rounds in found["cases"].items():
        command, own = (statistics.median(one[key] for one in rounds) for key in ("command", "alone"))
        share = statistics.median(one["command"] / one["alone"] for one in rounds)
        of_decoder = statistics.median(one["command"] / one["decoder"] for one in rounds)
        start = statistics.median(one["start"] for one in rounds)
        rows.append((name, f"{command:.0f}", f"{own:.0f}", cell(share, goal=GOAL), f"{of_decoder:.2f}", f"{start:.1f}"))
    header = ("", "images/s", "model alone", "share of it", "share of the decoder", "start, s")
    said = f"Measured on {describe(found['machine'])}. Rounds: {found['rounds']}."
    return {"predict_folder": f"{said}\n\n{table(header, rows)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; default %(default)s")
    add_json(parser, __file__)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one = options.one
        print(decode(Path(one["folder"])) if "folder" in one else alone(Path(one["model"]), one["runtime"]))
        return

    cases = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for count in sorted({SMALL, *(SMALL + count for _, _, count in CASES.values())}):
            folders[count] = Path(scratch) / f"images{count}"
            make_images(folders[count], count)
        models = {name: written(Path(scratch)) for name, (written, _, _) in CASES.items()}
        for _ in range(options.rounds):
            for name, (_, runtime, count) in CASES.items():
                start = command(models[name], runtime, folders[SMALL])
                whole = command(models[name], runtime, folders[SMALL + count])
                measured = {
                    "command": count / (whole - start),
                    "start": start,
                    "alone": in_a_process(model=str(models[name]), runtime=runtime),
                    "decoder": in_a_process(folder=str(folders[SMALL + count])),
                }
                print(name, measured, flush=True)
                cases[name].append(measured)
    found = {"machine": stopwatch.machine(), "rounds": options.rounds, "cases": cases}
    save(options.json, found)
    print(tables(found)["predict_folder"])


if __name__ == "__main__":
    main()
