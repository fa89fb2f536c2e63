"""Measures the peak memory of a training by depth of the network, with and without `memory_efficient=True`.

    python benchmarks/memory.py FOLDER [--depths 40 70 100 130] [--rounds 3]

The networks are DenseNet-BC with k = 12 and L layers, in three blocks of (L - 4) / 6 pairs, on random 32 × 32 images.
Each run has its own process, and all take turns. Memory is the peak beyond the memory after the imports, and time is
that of the median step. Both are medians over the rounds. Writes all measurements to FOLDER/memory.json and a chart to
FOLDER/memory.png. Needs Linux.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from contest import machine, start, take_threads
from contestants import FRUGAL, OURS
from networks import Job

#: Colours that colour-blind people can distinguish, and markers.
STYLES = {OURS: {"color": "#0072B2", "marker": "o"}, FRUGAL: {"color": "#E69F00", "marker": "s"}}


def median(runs: list[dict], of: str) -> float:
    """Returns the median over runs, of "memory_mb" or of the "seconds" of the median step."""
    return statistics.median(statistics.median(run[of]) if of == "seconds" else run[of] for run in runs)


def row(depth: int, runs: dict[str, list[dict]]) -> str:
    plain, frugal = (median(runs[name], "memory_mb") for name in (OURS, FRUGAL))
    time = median(runs[FRUGAL], "seconds") / median(runs[OURS], "seconds")
    return (
        f"| {depth} | {plain:.0f} | {plain / depth:.1f} | {frugal:.0f} | {frugal / depth:.1f} |"
        f" {frugal / plain:.2f} | {time:.2f} |"
    )


def draw(path: Path, found: dict[int, dict[str, list[dict]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, style in STYLES.items():
        panel.plot(list(found), [median(runs[name], "memory_mb") for runs in found.values()], label=name, **style)
    panel.set(xlabel="layers", ylabel="most memory in training, MB", ylim=(0, None))
    panel.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the results")
    parser.add_argument(
        "--depths", type=int, nargs="+", default=[40, 70, 100, 130], help="numbers of layers; default %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; default %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch; default %(default)s")
    options = parser.parse_args()
    odd = [depth for depth in options.depths if depth < 10 or depth % 6 != 4]
    if odd:
        parser.error(f"depths are {odd}; each must be 6 n + 4, with n of at least 1")

    options.folder.mkdir(parents=True, exist_ok=True)
    take_threads()
    print("| layers | plain, MB | a layer | memory_efficient, MB | a layer | memory | time |")
    print("|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    before, found = machine(), {}
    for depth in options.depths:
        found[depth] = {name: [] for name in STYLES}
        for _ in range(options.rounds):
            for name, runs in found[depth].items():
                job = Job(
                    contestant=name, task="train", network="densenetbc100_12", side=32, batch=options.batch,
                    classes=10, steps=4, folder=str(options.folder), depths=((depth - 4) // 6,) * 3,
                )  # fmt: skip
                runs.append(start(job, {"ours": Path(sys.executable)}))
                if "error" in runs[-1]:
                    raise RuntimeError(f"{name} of depth {depth} failed: {runs[-1]['error']}")
        print(row(depth, found[depth]), flush=True)
        (options.folder / "memory.json").write_text(json.dumps({"machine": before, "depths": found}, indent=1) + "\n")
        draw(options.folder / "memory.png", found)


if __name__ == "__main__":
    main()
