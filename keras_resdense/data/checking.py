"""Checks image files before they are used, and remembers the results.

A good file is not read again as long as its path, size and modification time are the same. The results are
stored in Keras's folder for downloads, `~/.keras` or `KERAS_HOME`, not in the folder of the images.
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
from keras_resdense.files import keras_home, staged
from keras_resdense.progress import progress

#: Number of files per batch of work for the threads.
BLOCK = 2048
#: Largest size of an image file, in bytes.
LARGEST = 2**29
#: Version of the check. Results of other versions are ignored.
RULES = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """Results of a check.

    Attributes:
        sizes: Size of each file in bytes `(files,)` int64.
        plain: Whether TensorFlow decodes the file to the same pixels as Pillow, in whole and in part `(files,)` bool.
        faults: What is wrong with each bad file, by the index of the file.
    """

    sizes: np.ndarray
    plain: np.ndarray
    faults: dict[int, str]


def check_images(paths: Sequence[str], root: Path) -> Checked:
    """Decodes every file that is new or has changed since its last check.

    Args:
        paths: Files.
        root: Folder that they are in. The results are stored under its name.
    """
    names = [os.fsencode(path) for path in paths]
    memory = _memory(root)
    known, remembered = _remembered(memory)
    # Row -1 stands for files that are not known, and equals no stamp.
    rows = np.concatenate([remembered, [(-1, -1, 0)]])[np.array([known.get(name, -1) for name in names], int)]
    stamps = np.array([_stamp_if_any(name) for name in names], "int64").reshape(-1, 2)
    unchanged = (rows[:, :2] == stamps).all(axis=1)
    rows[~unchanged] = 0
    faults, new = {}, np.flatnonzero(~unchanged).tolist()
    good = set(np.flatnonzero(unchanged).tolist())
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
        # An interrupted check is stored, too, so the next one continues from there.
        if new:
            _remember(memory, names, rows, sorted(good))
    return Checked(sizes=rows[:, 0], plain=rows[:, 2].astype(bool), faults=faults)


def decode_fast(encoded: bytes) -> np.ndarray:
    """Decodes an image file to the pixels of `decode_image`, with TensorFlow if that gives the same pixels faster."""
    pixels = _decoded_by_tensorflow(encoded) if is_plain_jpeg(encoded) else None
    return decode_image(encoded) if pixels is None else pixels


def read_file(path: str | bytes) -> bytes:
    """Returns the content of a file.

    Raises:
        ValueError: If it is not a regular file, because reading a pipe could block forever, or larger than `LARGEST`.
        OSError: If it cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if found.st_size > LARGEST:
            raise ValueError(f"{found.st_size:,} bytes, more than the {LARGEST:,} allowed for an image")
        return file.read()


def _inspect(name: bytes) -> tuple[int, int, int] | str:
    """Returns size, modification time and plainness of a file, or what is wrong with it."""
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


def _stamp_if_any(name: bytes) -> tuple[int, int]:
    try:
        return _stamp(name)
    except OSError:  # deleted since the folder was listed
        return -2, -2


def _memory(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return keras_home() / "keras_resdense" / "checked" / f"{name}.npz"


def _remembered(memory: Path) -> tuple[dict[bytes, int], np.ndarray]:
    """Returns the row of each file that was found good, and the rows `(files, 3)`: size, time of change, plainness."""
    try:
        with np.load(memory) as found:
            names, rows = found["names"].tobytes().split(b"\0"), found["rows"]
            if found["rules"] == RULES and rows.shape == (len(names), 3):
                return {name: row for row, name in enumerate(names)}, rows.astype("int64")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    return {}, np.zeros((0, 3), "int64")


def _remember(memory: Path, names: list[bytes], rows: np.ndarray, good: list[int]) -> None:
    joined = np.frombuffer(b"\0".join(names[number] for number in good), "uint8")
    try:
        with staged(memory) as temporary, open(temporary, "wb") as file:
            np.savez(file, rules=RULES, names=joined, rows=rows[good])
    except OSError as error:
        print(f"The results of the check cannot be stored, so the next start checks again: {error}")
