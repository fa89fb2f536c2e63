"""Measures the peak memory of a training by depth of the network, with and without `memory_efficient=True`.

    python benchmarks/memory.py FOLDER [--depths 40 70 100 130] [--rounds 3]

The networks are DenseNet-BC with k = 12 and L layers, in three blocks of (L - 4) / 6 pairs, on random 32 × 32 images.
Each run has its own process, and all take turns. Memory is the peak beyond the memory after the imports, as the median
of the rounds. Needs Linux.
"""

import argparse
import statistics
import sys
from pathlib import Path

from contest import machine, start, take_threads
from contestants import FRUGAL, OURS
from matplotlib.figure import Figure
from networks import Job
from pages import BLUE, ORANGE, add_json, cell, describe, save, table

STYLES = {OURS: {"color": BLUE, "marker": "o"}, FRUGAL: {"color": ORANGE, "marker": "s"}}


def megabytes(runs: list[dict]) -> float:
    return statistics.median(run["memory_mb"] for run in runs)


def tables(found: dict) -> dict[str, str]:
    rows = []
    for depth, runs in found["depths"].items():
        plain, frugal = (megabytes(runs[name]) for name in STYLES)
        memories = (part for memory in (plain, frugal) for part in (f"{memory:,.0f}", f"{memory / int(depth):.0f}"))
        rows.append((str(depth), *memories, cell(frugal / plain)))
    header = ("layers", "MB", "a layer", "memory-efficient, MB", "a layer", "memory")
    return {"memory": f"Measured on {describe(found['machine'])}.\n\n{table(header, rows, words=0)}"}


def draw(found: dict) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for name, style in STYLES.items():
        depths = found["depths"].items()
        panel.plot(
            [int(depth) for depth, _ in depths], [megabytes(runs[name]) for _, runs in depths], label=name, **style
        )
    panel.set(xlabel="layers", ylabel="most memory in training, MB", ylim=(0, None))
    panel.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of make_peers.py")
    parser.add_argument(
        "--depths", type=int, nargs="+", default=[40, 70, 100, 130], help="numbers of layers; default %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; default %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch; default %(default)s")
    add_json(parser, __file__)
    options = parser.parse_args()
    odd = [depth for depth in options.depths if depth < 10 or depth % 6 != 4]
    if odd:
        parser.error(f"depths are {odd}; each must be 6 n + 4, with n of at least 1")

    take_threads()
    found = {"machine": machine(), "depths": {}}
    for depth in options.depths:
        rounds = found["depths"][depth] = {name: [] for name in STYLES}
        for _ in range(options.rounds):
            for name, runs in rounds.items():
                job = Job(
                    contestant=name, task="train", network="densenetbc100_12", side=32, batch=options.batch,
                    classes=10, steps=4, folder=str(options.folder), depths=((depth - 4) // 6,) * 3,
                )  # fmt: skip
                runs.append(start(job, {"ours": Path(sys.executable)}))
                if "error" in runs[-1]:
                    raise RuntimeError(f"{name} of depth {depth} failed: {runs[-1]['error']}")
        save(options.json, found)
    print(tables(found)["memory"])


if __name__ == "__main__":
    main()
