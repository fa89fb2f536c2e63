"""Measures how fast a folder of JPEGs is loaded, against peers, and how long a training waits for it.

    python benchmarks/loading.py PEERS [--images 2000] [--rounds 3] [--batches 20] [--steps 6]

PEERS is the folder of `make_peers.py`. All contestants take turns, each time in a new process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from loaders import LOADERS, STEPS
from pages import add_json, describe, save, table
from photos import make_images

import keras_resdense
from keras_resdense.insight import stopwatch

HERE = Path(__file__).parent
#: Our contestants and their peers: with the same crops and flips, and with the same augmentation.
RIVALS = {
    "tf.data, not antialiased": "ours, crop and flip",
    "tf.data, antialiased": "ours, crop and flip",
    "torchvision": "ours, crop and flip",
    "timm, rand-m7-mstd0.5-inc1": "ours, strikes_back_a2",
}


def measure(interpreter: Path, name: str, folder: Path, count: int) -> dict[str, float]:
    """Runs a row of `loaders.py` in a process of its own."""
    command = [interpreter, HERE / "loaders.py", name, folder, str(count)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def tables(found: dict) -> dict[str, str]:
    loaders = []
    for name, rounds in found["loaders"].items():
        speeds = [measured["images_per_second"] for measured in rounds]
        costs = [measured["processor_ms"] for measured in rounds if "processor_ms" in measured]
        cost = f"{statistics.median(costs):.2f}" if costs else ""
        ratio = ""
        if name in RIVALS:
            pairs = zip(found["loaders"][RIVALS[name]], speeds, strict=True)
            ratio = f"{statistics.median(mine['images_per_second'] / speed for mine, speed in pairs):.2f}"
        spread = f"{min(speeds):.0f}–{max(speeds):.0f}"
        loaders.append((name, f"{statistics.median(speeds):.0f}", spread, cost, ratio))
    steps = (
        (name, f"{one['step_ms']:.0f}", f"{one['waiting']:.1%}", f"{one['least']:.1%} – {one['most']:.1%}")
        for name, one in found["steps"].items()
    )
    return {
        "loading": f"Measured on {describe(found['machine'])}. Rounds: {found['settings']['rounds']}.\n\n"
        + table(("", "images/s", "min–max", "processor ms an image", "ours over it"), loaders)
        + "\n\n"
        + table(("step", "ms", "of which waiting", "least–most"), steps)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="number of images; default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; default %(default)s")
    parser.add_argument("--batches", type=int, default=20, help="batches per round; default %(default)s")
    parser.add_argument("--steps", type=int, default=6, help="steps per round; default %(default)s")
    add_json(parser, __file__)
    options = parser.parse_args()
    interpreters = {"ours": Path(sys.executable), "torch": options.peers / "torch" / "bin" / "python"}

    loaders = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as scratch:
        # The results of the image check are not stored in the user's home.
        os.environ["KERAS_HOME"] = scratch
        folder = Path(scratch) / "images"
        make_images(folder, options.images)
        keras_resdense.prepare(folder, f"{folder}-prepared")
        for _ in range(options.rounds):
            for name, (environment, _) in LOADERS.items():
                loaders[name].append(measure(interpreters[environment], name, folder, options.batches))
        steps = {name: measure(interpreters["ours"], name, folder, options.steps) for name in STEPS}

    settings = {name: getattr(options, name) for name in ("images", "rounds", "batches", "steps")}
    found = {"machine": stopwatch.machine(), "settings": settings, "loaders": loaders, "steps": steps}
    save(options.json, found)
    print(tables(found)["loading"])


if __name__ == "__main__":
    main()
