"""Compares the minutes of training until ResNet-20 has 94 % of Fashion-MNIST's test images right, on two cores.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/time_to_accuracy.py FOLDER [contestants …] [--seeds 0 1 2]

A run of a part, such as one contestant or seed, keeps the other results of the JSON file.

- ours: the recipe `fast` with fewer epochs, decoded images in memory, and the precision that `auto` chooses.
- plain Keras: our network, opened from its `.keras` file without the package, in `fit`.
- PyTorch: the same network in the usual loop, with channels last.

Peers use the recipe of the CIFAR paper (1512.03385, section 4.2): SGD with momentum, a rate of 0.1, weight decay of
1e-4, batches of 128, flips and crops of images padded by 4 pixels. Its schedule divides the rate by 10 after a half and
three quarters of the training, and is scaled to the epochs that reach 94 %. Their images are in memory, too.

Each training is a process of its own, and no other runs at the same time. Time is that on the clock. Imports and, for
all contestants alike, the evaluations after each epoch do not count. `--epochs` and `--share` are for trials.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from contest import SETTINGS, machine, take_threads
from learners import SIDE, WEIGHT_DECAY, Job
from matplotlib.figure import Figure
from pages import BLUE, GREEN, ORANGE, add_json, cell, describe, list_versions, load, replace, save, table

GOAL, SEEDS = 0.94, (0, 1, 2)
#: Times of ours that the peers should take.
RATIO = 4.0
OURS = "ours"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """A row of `CONTESTANTS`.

    Attributes:
        environment: "ours", or an environment that `make_peers.py` makes.
        epochs: Epochs of its schedule.
        colour: Colour in the chart.
    """

    environment: str
    epochs: int
    colour: str


CONTESTANTS = {
    OURS: Contestant(environment="ours", epochs=14, colour=BLUE),
    "plain Keras": Contestant(environment="keras", epochs=40, colour=ORANGE),
    "PyTorch": Contestant(environment="torch", epochs=40, colour=GREEN),
}


def write_inputs(job: Job) -> None:
    """Writes the images as arrays, and our untrained network, for the environments without the package."""
    import keras

    import keras_resdense
    from keras_resdense.data.sources import load_data

    data = load_data("fashion_mnist")
    arrays = {}
    for names, part in ((("images", "classes"), data.train), (("test", "test_classes"), data.test)):
        pixels, classes, _ = part.read(np.arange(part.count))
        arrays |= dict(zip(names, (np.asarray(pixels), np.asarray(classes)), strict=True))
    np.savez(job.images, **arrays)
    keras.utils.set_random_seed(job.seed)
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], weight_decay=WEIGHT_DECAY)
    keras_resdense.create_model(row, input_shape=(SIDE, SIDE, 1), classes=10).save(job.network)


def learn(job: Job, folder: Path) -> dict:
    """Runs a training in a new process without the shell's settings for the frameworks."""
    environment = CONTESTANTS[job.contestant].environment
    python = sys.executable if environment == "ours" else folder / environment / "bin" / "python"
    shell = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    command = [python, Path(__file__).with_name("learners.py"), json.dumps(dataclasses.asdict(job))]
    done = subprocess.run(command, env=shell, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{job} failed with {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def minutes_to_goal(row: dict) -> float | None:
    """Returns the minutes after which a training first reached the goal; None if it did not."""
    return next((minutes for minutes, accuracy in row["points"] if accuracy >= GOAL), None)


def tables(rows: Sequence[dict]) -> dict[str, str]:
    """Returns what a page says, by the name in its comments."""
    lines, reached, versions = [], {}, {}
    for name in CONTESTANTS:
        found = sorted((row for row in rows if row["contestant"] == name), key=lambda row: row["seed"])
        if not found:
            continue
        versions |= {package: version for row in found for package, version in row["versions"].items()}
        minutes = [minutes_to_goal(row) for row in found]
        reached[name] = None if None in minutes else statistics.median(minutes)
        pair = reached[name], reached.get(OURS)
        ratio = pair[0] / pair[1] if name != OURS and all(pair) else None
        each = statistics.median(60 * row["points"][-1][0] / len(row["points"]) for row in found)
        lines.append((
            name,
            str(found[0]["epochs"]),
            f"{each:.0f}",
            " / ".join(f"{100 * row['points'][-1][1]:.2f}" for row in found),
            " / ".join("never" if one is None else f"{one:.1f}" for one in minutes),
            cell(ratio, goal=RATIO),
        ))  # fmt: skip
    where = " and ".join(sorted({describe(row["machine"]) for row in rows}))
    header = ("", "epochs", "seconds an epoch", "accuracy at the end, %", f"minutes to {GOAL:.0%}", "over ours")
    return {"time_to_accuracy": f"Measured on {where}: {list_versions(versions)}.\n\n{table(header, lines)}"}


def draw(rows: Sequence[dict]) -> Figure:
    """Draws the accuracy of every training over its minutes."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, contestant in CONTESTANTS.items():
        for number, row in enumerate(row for row in rows if row["contestant"] == name):
            minutes, accuracy = zip(*row["points"], strict=True)
            label = name if number == 0 else None
            axes.plot(minutes, [100 * one for one in accuracy], color=contestant.colour, linewidth=1, label=label)
    axes.axhline(100 * GOAL, color="black", linewidth=0.8, linestyle="dotted")
    axes.set(xlabel="minutes of training", ylabel="accuracy on test images, %", ylim=(86, 95))
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of make_peers.py, which also gets images and networks")
    parser.add_argument("contestants", nargs="*", help=f"of {', '.join(CONTESTANTS)}; default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--epochs", type=int, help="epochs of all contestants, for a trial")
    parser.add_argument("--share", type=float, default=1.0, help="share of the training images, for a trial")
    add_json(parser, __file__)
    options = parser.parse_args()
    if unknown := set(options.contestants) - set(CONTESTANTS):
        parser.error(f"there is no contestant {', '.join(unknown)}; there are {', '.join(CONTESTANTS)}")
    take_threads()
    folder, names = options.folder.absolute(), options.contestants or CONTESTANTS
    for seed in options.seeds:
        made = {"folder": str(folder), "seed": seed, "share": options.share}
        jobs = [Job(contestant=name, epochs=options.epochs or CONTESTANTS[name].epochs, **made) for name in names]
        write_inputs(jobs[0])
        for job in jobs:
            row = dataclasses.asdict(job) | {"folder": "", "machine": machine()} | learn(job, folder)
            save(options.json, replace(load(options.json, []), row, "contestant", "seed"))
            print(f"{job.contestant}, seed {seed}: {minutes_to_goal(row)} minutes", flush=True)
    rows = load(options.json, [])
    print(tables(rows)["time_to_accuracy"])
    draw(rows).savefig(options.json.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
