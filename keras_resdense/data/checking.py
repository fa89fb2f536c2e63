"""The check of image files before they are used, remembered from one start to the next.

A file that was found good is not read again as long as its path, size and time of change are the same. What was
found lies in Keras's folder for downloads, outside of the images' folder; `KERAS_HOME` moves it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_resdense.data.decoding import decode_image, is_plain_jpeg
from keras_resdense.files import staged
from keras_resdense.progress import progress

#: Files that are given to the threads at once.
BLOCK = 2048
#: Bytes of a file that is still read.
LARGEST = 2**29
#: Number of the rules of the check: what other rules found is forgotten.
RULES = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """What the check of some files found.

    Attributes:
        sizes: Bytes of each file `(files,)` int64.
        plain: Whether TensorFlow reads the file as Pillow does, and can decode a part of it `(files,)` bool.
        faults: What is wrong with each bad file, by its number.
    """

    sizes: np.ndarray
    plain: np.ndarray
    faults: dict[int, str]


def check_images(paths: Sequence[str], root: Path) -> Checked:
    """Decodes every file that is new or has changed since it was found good, as training will do.

    Args:
        paths: Files.
        root: Folder that they are in, under whose name the findings are remembered.
    """
    names = [os.fsencode(path) for path in paths]
    memory = _memory(root)
    known = _remembered(memory)
    rows = np.zeros((len(names), 3), "int64")
    faults, new = {}, []
    for number, name in enumerate(names):
        if (row := known.get(name)) and _is_unchanged(name, row):
            rows[number] = row
        else:
            new.append(number)
    good = set(range(len(names))) - set(new)
    try:
        if new:
            with progress("Checking images", len(new)) as advance, concurrent.futures.ThreadPoolExecutor() as pool:
                for start in range(0, len(new), BLOCK):
                    block = new[start : start + BLOCK]
                    for number, found in zip(block, pool.map(_inspect, [names[n] for n in block]), strict=True):
                        if isinstance(found, str):
                            faults[number] = found
                        else:
                            rows[number] = found
                            good.add(number)
                        advance(1)
    finally:
        # Of a check that is broken off, too: the next one goes on from there.
        if new:
            _remember(memory, names, rows, sorted(good))
    return Checked(sizes=rows[:, 0], plain=rows[:, 2].astype(bool), faults=faults)


def decode_fast(encoded: bytes) -> np.ndarray:
    """Decodes an image file as `decode_image` does, with TensorFlow where that gives the same pixels in less time."""
    pixels = _decoded_by_tensorflow(encoded) if is_plain_jpeg(encoded) else None
    return decode_image(encoded) if pixels is None else pixels


def read_file(path: str | bytes) -> bytes:
    """Returns the content of a file.

    Raises:
        ValueError: If it is no regular file, because to read a pipe could wait for ever, or larger than `LARGEST`.
        OSError: If it cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("no regular file")
        if found.st_size > LARGEST:
            raise ValueError(f"{found.st_size:,} bytes, more than the {LARGEST:,} of the largest image allowed")
        return file.read()


def _inspect(name: bytes) -> tuple[int, int, int] | str:
    """Returns size, time of change and plainness of a file, or what is wrong with it."""
    try:
        stamp = _stamp(name)
        encoded = read_file(name)
        plain = is_plain_jpeg(encoded) and _decoded_by_tensorflow(encoded) is not None
        if not plain:
            decode_image(encoded)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)
    return *stamp, int(plain)


def _decoded_by_tensorflow(jpeg: bytes) -> np.ndarray | None:
    import tensorflow as tf

    try:
        with tf.device("CPU:0"):
            return tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    except tf.errors.InvalidArgumentError:
        return None


def _stamp(name: bytes) -> tuple[int, int]:
    found = os.stat(name)
    return found.st_size, found.st_mtime_ns


def _is_unchanged(name: bytes, row: tuple[int, int, int]) -> bool:
    try:
        return row[:2] == _stamp(name)
    except OSError:  # deleted since the folder was listed
        return False


def _memory(root: Path) -> Path:
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    return home / "keras_resdense" / "checked" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.npz"


def _remembered(memory: Path) -> dict[bytes, tuple[int, int, int]]:
    try:
        with np.load(memory) as found:
            if found["rules"] != RULES:
                return {}
            names = found["names"].tobytes().split(b"\0")
            return dict(zip(names, map(tuple, found["rows"].tolist()), strict=True))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}


def _remember(memory: Path, names: list[bytes], rows: np.ndarray, good: list[int]) -> None:
    joined = np.frombuffer(b"\0".join(names[number] for number in good), "uint8")
    try:
        with staged(memory) as temporary, open(temporary, "wb") as file:
            np.savez(file, rules=RULES, names=joined, rows=rows[good])
    except OSError as error:
        print(f"The check will be made again at the next start: {error}")
