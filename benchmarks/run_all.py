"""Runs every benchmark whose figures the pages show, then writes all tables and charts anew.

    python benchmarks/make_peers.py PEERS
    python benchmarks/run_all.py PEERS [names …]
    python benchmarks/run_all.py --tables

Takes about 15 hours of an idle machine with Linux and two cores, half of them for the time to accuracy, and 10 GB of
PEERS for the rehearsal, which comes last. Each benchmark writes its measurements beside its script, and what it prints
to PEERS/NAME.log. If one fails, the others run nevertheless, and the exit code is 1. `--tables` measures nothing. The
stamps of `small_folders.py` are left out.
"""

import argparse
import importlib
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pages import HERE, insert, load

SAVED = "../saved_models/resnet20_fashion_mnist ../saved_models/densenetbc40_12_fashion_mnist"
TRAIN = "-m keras_resdense train --folder {scratch}"
ONE_CORE = "forms.py --processors 1"
COMPILED = "forms.py --rounds 3 --steps 6 --forms shared calls XLA both"
#: Benchmarks, the minutes that a command takes, roughly, on two cores, and the command: a script or the package.
COMMANDS = (
    ("start", 12, "start.py --rounds 3"),
    ("learning", 2, f"learning.py {SAVED}"),
    ("loading", 10, "loading.py {peers}"),
    ("predict_folder", 20, "predict_folder.py"),
    ("memory", 10, "memory.py {peers} --rounds 1"),
    ("forms", 5, f"{ONE_CORE} densenetbc40_12 --rounds 3 --steps 2"),
    ("forms", 5, f"{ONE_CORE} resnet20 densenetbc40_12 --operations --forms plain shared --batch 64 --steps 6"),
    ("forms", 5, f"{ONE_CORE} densenet121 --operations --side 224 --batch 8 --forms shared memory-efficient"),
    ("forms", 5, f"{COMPILED} --side 28 --batch 128 resnet20"),
    ("forms", 10, f"{COMPILED} --batch 64 densenetbc40_12"),
    ("forms", 15, f"{COMPILED} --side 64 resnet18"),
    ("quantisation", 20, f"{TRAIN} --recipe fast --model resnet18 --image-size 32 --batch-size 64 --epochs 3"
     " --warmup-epochs 1"),
    ("quantisation", 15, f"{TRAIN} --model densenet169 --image-size 32 --epochs 8 --batch-size 32"),
    ("quantisation", 20, f"quantisation.py {SAVED} {{scratch}}/resnet18_fashion_mnist {{scratch}}/densenet169_digits"),
    ("quantisation", 25, f"quantisation.py {SAVED} --learn 60"),
    ("inference", 60, "inference.py {peers}"),
    ("predict_speed", 80, "predict_speed.py {peers} --rounds 3"),
    ("training_speed", 100, "training_speed.py {peers} --rounds 3"),
    ("small_folders", 60, "small_folders.py"),
    ("time_to_accuracy", 450, "time_to_accuracy.py {peers}"),
    ("rehearsal", 40, "rehearsal.py {scratch}"),
)  # fmt: skip
NAMES = tuple(dict.fromkeys(name for name, _, _ in COMMANDS))


def texts() -> dict[str, str]:
    """Returns the tables and sentences of all benchmarks that have been run, by their names on the pages."""
    tables = [importlib.import_module(name).tables(one) for name in NAMES if (one := load(HERE / f"{name}.json", None))]
    return {name: text for one in tables for name, text in one.items()}


def write_pages() -> None:
    insert(texts())
    for name in ("memory", "predict_speed", "time_to_accuracy", "training_speed"):
        if found := load(HERE / f"{name}.json", None):
            importlib.import_module(name).draw(found).savefig(HERE / f"{name}.png", dpi=120)
    subprocess.run([sys.executable, HERE.parent / "docs" / "figures.py"], check=True)


def measure(name: str, peers: Path) -> bool:
    """Runs the commands of a benchmark up to the first that fails, and returns whether all went well."""
    with tempfile.TemporaryDirectory(dir=peers) as scratch, open(peers / f"{name}.log", "w") as log:
        folders = {"peers": shlex.quote(str(peers)), "scratch": shlex.quote(scratch)}
        commands = [shlex.split(command.format(**folders)) for other, _, command in COMMANDS if other == name]
        done = (subprocess.run([sys.executable, *words], cwd=HERE, stdout=log, stderr=log) for words in commands)
        return not any(one.returncode for one in done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path, nargs="?", help="folder of make_peers.py")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; default all")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write tables and charts")
    options = parser.parse_args()
    names = [] if options.tables else options.names or list(NAMES)
    if options.tables == bool(options.peers) or not set(names) <= set(NAMES):
        parser.error(f"give --tables alone, or PEERS and maybe names: {', '.join(NAMES)}")

    start, failed = time.monotonic(), []
    for number, name in enumerate(names):
        minutes = {other: sum(took for one, took, _ in COMMANDS if one == other) for other in names[number:]}
        passed = f"{(time.monotonic() - start) / 60:.0f} min passed, about {sum(minutes.values())} min left"
        print(f"{number + 1} of {len(names)}: {name}, about {minutes[name]} min ({passed})", flush=True)
        if not measure(name, options.peers.absolute()):
            failed.append(name)
    write_pages()
    if failed:
        sys.exit(f"Failed: {', '.join(failed)} (see their logs). Again: run_all.py {options.peers} {' '.join(failed)}")


if __name__ == "__main__":
    main()
