"""Runs every benchmark whose figures the pages show, then writes all tables and charts anew.

    python benchmarks/make_peers.py PEERS
    python benchmarks/run_all.py PEERS [names …]
    python benchmarks/run_all.py --tables

Takes a few hours of an idle machine with Linux and two cores. Each benchmark writes its measurements beside its script,
and what it prints to PEERS/NAME.log. If one fails, the others run nevertheless, and the exit code is 1. Names choose
benchmarks, for example those that failed. `--tables` measures nothing: it writes what the measurements say.

The rehearsal comes last, because it takes 10 GB of PEERS. The stamps of `small_folders.py` are left out.
"""

import argparse
import importlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from pages import HERE, insert, load

SAVED = "../saved_models/resnet20_fashion_mnist ../saved_models/densenetbc40_12_fashion_mnist"
TRAIN = "-m keras_resdense train --folder {scratch} --name"
#: Minutes that a benchmark takes, roughly, on two cores, and its commands: scripts beside this one, or the package.
BENCHMARKS = {
    "build_time": (5, "build_time.py --rounds 3"),
    "learning": (2, f"learning.py {SAVED}"),
    "loading": (10, "loading.py {peers}"),
    "memory": (10, "memory.py {peers} --rounds 1"),
    "forms": (
        45,
        "forms.py densenetbc40_12 --processors 1 --rounds 3 --steps 2",
        "forms.py resnet20 densenetbc40_12 --processors 1 --operations --forms plain shared --batch 64 --steps 6",
        "forms.py densenet121 --processors 1 --operations --side 224 --batch 8 --forms shared memory-efficient",
        "forms.py resnet20 --side 28 --batch 128 --forms shared calls XLA both --rounds 3 --steps 6",
        "forms.py densenetbc40_12 --batch 64 --forms shared calls XLA both --rounds 3 --steps 6",
        "forms.py resnet18 --side 64 --forms shared calls XLA both --rounds 3 --steps 6",
    ),
    "quantisation": (
        60,
        f"{TRAIN} resnet18_fashion_mnist --recipe fast --model resnet18 --image-size 32 --batch-size 64 --epochs 3 "
        "--warmup-epochs 1 --precision mixed_bfloat16",
        f"{TRAIN} densenet169_digits --model densenet169 --image-size 32 --epochs 8 --batch-size 32",
        f"quantisation.py {SAVED} {{scratch}}/resnet18_fashion_mnist {{scratch}}/densenet169_digits",
        "quantisation.py ../saved_models/resnet20_fashion_mnist --learn 60",
    ),
    "inference": (60, "inference.py {peers}"),
    "predict_speed": (80, "predict_speed.py {peers} --rounds 3"),
    "training_speed": (100, "training_speed.py {peers} --rounds 3"),
    "small_folders": (60, "small_folders.py"),
    "rehearsal": (40, "rehearsal.py {scratch}"),
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
    insert(texts())
    for name, script, found in measured():
        if hasattr(script, "draw"):
            script.draw(found).savefig(HERE / f"{name}.png", dpi=120)
    subprocess.run([sys.executable, HERE.parent / "docs" / "figures.py"], check=True)


def measure(name: str, peers: Path) -> bool:
    """Runs the commands of a benchmark up to the first that fails, and returns whether all went well."""
    with tempfile.TemporaryDirectory(dir=peers) as scratch, open(peers / f"{name}.log", "w") as log:
        for command in BENCHMARKS[name][1:]:
            words = shlex.split(command.format(peers=shlex.quote(str(peers)), scratch=shlex.quote(scratch)))
            done = subprocess.run([sys.executable, *words], cwd=HERE, stdout=log, stderr=subprocess.STDOUT)
            if done.returncode:
                return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path, nargs="?", help="folder of make_peers.py; without it, --tables")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default all")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write tables and charts")
    options = parser.parse_args()
    names = [] if options.tables else options.names or list(BENCHMARKS)
    if options.tables == bool(options.peers) or not set(names) <= set(BENCHMARKS):
        parser.error(f"give --tables alone, or PEERS and maybe names: {', '.join(BENCHMARKS)}")

    start, failed = time.monotonic(), []
    for number, name in enumerate(names):
        left = sum(BENCHMARKS[other][0] for other in names[number:])
        passed = f"{(time.monotonic() - start) / 60:.0f} min passed, about {left} min left"
        print(f"{number + 1} of {len(names)}: {name}, about {BENCHMARKS[name][0]} min ({passed})", flush=True)
        if not measure(name, options.peers.absolute()):
            print(f"  failed: see {options.peers / name}.log", flush=True)
            failed.append(name)
    write_pages()
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. Again: run_all.py {options.peers} {' '.join(failed)}")


if __name__ == "__main__":
    main()
