"""Runs every benchmark whose figures the pages show, then writes all tables and charts anew.

    python benchmarks/make_peers.py PEERS
    python benchmarks/run_all.py PEERS [names …]
    python benchmarks/run_all.py --tables

Takes a few hours of an idle machine with Linux and two cores. Benchmarks run one after the other, in the order and with
the options of `BENCHMARKS`, and write their measurements beside their scripts. What they print goes to PEERS/NAME.log.
If one fails, the others run nevertheless, and the exit code is 1. Names choose benchmarks, for example those that
failed. `--tables` measures nothing: it writes tables and charts from the measurements that are there.

The rehearsal comes last: it takes 10 GB of PEERS. The stamps of `small_folders.py` are not measured, because their
folder has no fixed place. The scripts `arm64.py`, `epochs.py` and `tflite_graphs.py` print, and write no table.
"""

import argparse
import importlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from pages import HERE, insert, load

SAVED = "saved_models/resnet20_fashion_mnist saved_models/densenetbc40_12_fashion_mnist"
#: Minutes that a benchmark takes, roughly, on two cores, and its commands: scripts, or modules of the package.
BENCHMARKS = {
    "loading": (10, "loading.py {peers}"),
    "inference": (60, "inference.py {peers}"),
    "predict_speed": (80, "predict_speed.py {peers} --rounds 3"),
    "training_speed": (90, "training_speed.py {peers} --rounds 3"),
    "memory": (15, "memory.py {peers} --rounds 1"),
    "small_folders": (60, "small_folders.py"),
}


def measured() -> Iterator[tuple[str, ModuleType, object]]:
    """Yields name, script and measurements of each benchmark that has been run."""
    for name in BENCHMARKS:
        if (found := load(HERE / f"{name}.json", None)) is not None:
            yield name, importlib.import_module(name), found


def texts() -> dict[str, str]:
    """Returns the tables and sentences of all benchmarks, by their names on the pages."""
    return {name: text for _, script, found in measured() for name, text in script.tables(found).items()}


def write_pages() -> None:
    """Writes all tables, sentences and charts from the measurements beside the scripts."""
    insert(texts())
    for name, script, found in measured():
        if hasattr(script, "draw"):
            script.draw(found).savefig(HERE / f"{name}.png", dpi=120)
    subprocess.run([sys.executable, HERE.parent / "docs" / "figures.py"], check=True)


def measure(name: str, peers: Path) -> bool:
    """Runs the commands of a benchmark up to the first that fails, and returns whether all went well."""
    _, *commands = BENCHMARKS[name]
    with open(peers / f"{name}.log", "w") as log:
        for command in commands:
            script, *options = shlex.split(command.format(peers=shlex.quote(str(peers.absolute()))))
            words = [sys.executable, HERE / script, *options]
            if subprocess.run(words, cwd=HERE.parent, stdout=log, stderr=subprocess.STDOUT).returncode:
                return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path, nargs="?", help="folder of make_peers.py, which also gets logs and models")
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), help=f"of {', '.join(BENCHMARKS)}; default all")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write tables and charts")
    options = parser.parse_args()
    if options.tables == bool(options.peers):
        parser.error("give either PEERS, the folder of make_peers.py, or --tables")
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")

    start, failed = time.monotonic(), []
    for number, name in enumerate(options.names if options.peers else ()):
        minutes, left = BENCHMARKS[name][0], sum(BENCHMARKS[other][0] for other in options.names[number:])
        passed = f"{(time.monotonic() - start) / 60:.0f} min passed, about {left} min left"
        print(f"{number + 1} of {len(options.names)}: {name}, about {minutes} min ({passed})", flush=True)
        if not measure(name, options.peers):
            print(f"  failed: see {options.peers / name}.log", flush=True)
            failed.append(name)
    write_pages()
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. Again: run_all.py {options.peers} {' '.join(failed)}")


if __name__ == "__main__":
    main()
