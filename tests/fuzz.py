"""Feeds damaged files to everything that reads files: each must be read or refused by a ValueError or an OSError.

    python -m tests.fuzz KIND --seconds 60 --seed 0

prints how many files were read and how many were refused, and stops at the first one that does anything else. It keeps
that file in the folder given by `--keep`. Memory is limited, as a size in a damaged file can ask for all that there is.
"""

import argparse
import dataclasses
import functools
import gzip
import json
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

import keras_resdense
from keras_resdense import ImageContract
from keras_resdense.data.decoding import decode_image
from keras_resdense.data.folder import load_folder
from keras_resdense.data.graph_decoding import decode_in_graph
from keras_resdense.exporting.read import load_runner
from keras_resdense.pretrained import weights
from keras_resdense.training import checkpoints, recipes

GOLDEN = Path(__file__).parent / "golden"
RUN = GOLDEN / "runs" / "complete"
#: Files that are tried, however long each takes.
LEAST = 20
#: Bytes of addresses; TensorFlow and its threads take less than half of them.
MEMORY = 8 * 2**30
#: Numbers that lengths and offsets of formats break on.
EDGES = (b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Damages a file in one to four places."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(damaged) + 1)
        length = chance.choice((1, 4, 64, 1024))
        kind = chance.randrange(6)
        if kind == 0 and damaged:
            damaged[place % len(damaged)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            damaged[place : place + length] = chance.randbytes(length)
        elif kind == 2:
            edge = chance.choice(EDGES)
            damaged[place : place + len(edge)] = edge
        elif kind == 3:
            del damaged[place : place + length]
        elif kind == 4:
            damaged[place:place] = damaged[place : place + length]
        else:
            del damaged[place:]
    return bytes(damaged)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        sources: Whole files to damage.
        read: Function that reads a damaged file.
    """

    sources: Callable[[], list[Path]]
    read: Callable[[Path], object]


@functools.cache
def network():
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet18"], depths=(1, 1, 1, 1), filters=(8, 16, 24, 32))
    return keras_resdense.create_model(row, classes=3)


@functools.cache
def made() -> Path:
    """Returns a folder of files of weights."""
    folder = Path(tempfile.mkdtemp())
    network().save_weights(folder / "model.weights.h5")
    network().save(folder / "model.keras")
    names = weights.peer_names(network(), "torch")
    from safetensors.numpy import save_file

    def torch_shape(value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T)

    variables = weights.own_variables(network())
    save_file({names[n]: torch_shape(np.asarray(v)) for n, v in variables.items()}, folder / "model.safetensors")
    keras_resdense.export(network(), folder / "model.onnx", "onnx", np.zeros((1, 224, 224, 3), "float32"))
    return folder


def run_model(path: Path) -> np.ndarray:
    run = load_runner(path)
    return run(np.zeros((1, *run.input_shape[1:]), "float32"))


def read_checkpoint(path: Path) -> None:
    folder = path.parent / "checkpoints"
    folder.mkdir(exist_ok=True)
    path.rename(folder / "step-000000022.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if checkpoints.newest(folder) is None:
            raise ValueError("A damaged checkpoint counts as none.")


def decode_graph(path: Path) -> None:
    import tensorflow as tf

    try:
        decode_in_graph(tf.constant(path.read_bytes()))
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(str(error)) from error


def awkward() -> list[Path]:
    return sorted((GOLDEN / "awkward").iterdir())


def contract_file() -> list[Path]:
    path = Path(tempfile.mkdtemp()) / "image_contract.json"
    path.write_text(ImageContract(size=(8, 8), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)).to_json())
    return [path]


def split_file() -> list[Path]:
    path = Path(tempfile.mkdtemp()) / "split.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"class_names": ["cat", "dog"], "train": [("cat/1.png", 0, 90)], "test": [("dog/2.png", 1, 9)]}, file)
    return [path]


KINDS = {
    "image": Kind(awkward, lambda path: decode_image(path.read_bytes())),
    "image_in_graph": Kind(awkward, decode_graph),
    "contract": Kind(contract_file, lambda path: ImageContract.from_json(path.read_text(errors="replace"))),
    "split": Kind(split_file, lambda path: load_folder(path.parent, split=path)),
    "recipe": Kind(lambda: [RUN / "recipe.json"], recipes.read),
    "checkpoint": Kind(lambda: sorted((GOLDEN / "runs/interrupted/checkpoints").iterdir()), read_checkpoint),
    "safetensors": Kind(lambda: [made() / "model.safetensors"], lambda path: weights.load(network(), path)),
    "weights_h5": Kind(lambda: [made() / "model.weights.h5"], lambda path: weights.load(network(), path)),
    "keras": Kind(lambda: [made() / "model.keras"], lambda path: weights.load(network(), path)),
    "keras_model": Kind(lambda: [RUN / "model.keras"], run_model),
    "tflite": Kind(lambda: [RUN / "model.tflite"], run_model),
    "onnx": Kind(lambda: [made() / "model.onnx"], run_model),
}


def fuzz(kind: str, seconds: float, seed: int, keep: Path) -> tuple[int, int]:
    """Returns the numbers of damaged files that were read and that were refused."""
    chance, outcomes = random.Random(f"{kind} {seed}"), [0, 0]
    sources = KINDS[kind].sources()
    end = time.monotonic() + seconds
    while time.monotonic() < end or sum(outcomes) < LEAST:
        source = chance.choice(sources)
        kept = keep / f"{kind}{source.suffix if not source.name.endswith('.weights.h5') else '.weights.h5'}"
        kept.write_bytes(mutated(source.read_bytes(), chance))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / kept.name
            path.write_bytes(kept.read_bytes())
            try:
                KINDS[kind].read(path)
                outcomes[0] += 1
            except (ValueError, OSError):
                outcomes[1] += 1
    return outcomes[0], outcomes[1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kind", choices=KINDS)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()))
    options = options.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    read, refused = fuzz(options.kind, options.seconds, options.seed, options.keep)
    print(f"{options.kind}: {read + refused} damaged files, {read} read, {refused} refused", file=sys.stderr)


if __name__ == "__main__":
    main()
