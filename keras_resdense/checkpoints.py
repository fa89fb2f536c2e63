"""Checkpoints: all that a training needs to go on as if nothing had happened, in one file.

A checkpoint is written to a temporary name, forced to the disk and then renamed, so a file of that name is
whole. The zip format of NumPy's `.npz` carries a checksum of every array: damage is found when it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np

#: Checkpoints kept: the newest, and one to fall back to.
KEPT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Where a training stands.

    Attributes:
        phase: Number of the phase, from 0.
        step: Steps made since the beginning of the training.
        history: A row of measurements for each epoch that is complete.
        best: Highest accuracy on the images held out so far.
    """

    phase: int = 0
    step: int = 0
    history: tuple[Mapping[str, float], ...] = ()
    best: float = -1.0


def save(folder: Path, model: keras.Model, position: Position, write: bool = True) -> None:
    """Saves a compiled model with its optimiser, its seeds and its metrics.

    Args:
        folder: Where checkpoints are; it is made where missing.
        model: To save.
        position: Where its training stands.
        write: Whether to write the file. Replicas on other machines gather values for the one that does.

    Raises:
        OSError: If the file cannot be written. The checkpoints before it stay as they were.
        FloatingPointError: If the weights are not finite. Nothing is written.
    """
    arrays = {f"{index:05}": keras.ops.convert_to_numpy(v) for index, v in enumerate(_variables(model))}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise FloatingPointError(
            f"The weights are no longer finite after step {position.step}. The last good ones are in {folder}."
            " A lower learning rate or a longer warm-up often helps."
        )
    if not write:
        return
    path = folder / f"step-{position.step:09}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, position=json.dumps(dataclasses.asdict(position)), **arrays)
    except OSError as error:
        last = next(iter(_newest_first(folder)), None)
        raise OSError(
            f"The checkpoint {path} cannot be written ({error}). "
            + (f"The last good one is {last}: the same command goes on from there." if last else "There is none yet.")
        ) from error
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def restore(folder: Path, model: keras.Model, phase: int) -> Position | None:
    """Sets a compiled model to the newest checkpoint of a phase that is whole.

    Returns:
        Where its training stood, or None where there is no such checkpoint.
    """
    for path, position in _readable(folder):
        if position.phase != phase:
            return None
        variables = _variables(model)
        with _reporting_damage(path), open(path, "rb") as opened, np.load(opened) as file:
            values = [file[f"{index:05}"] for index in range(len(variables))]
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            return position
    return None


def newest(folder: Path) -> Position | None:
    """Returns where the newest checkpoint that is whole stands, or None where there is none."""
    return next((position for _, position in _readable(folder)), None)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write a file to, which takes the place of `path` once it is on the disk."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _variables(model: keras.Model) -> list[keras.Variable]:
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    known = {id(variable): variable for variable in [*model.variables, *model.optimizer.variables, *metrics]}
    return list(known.values())


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.npz"), reverse=True)


def _readable(folder: Path) -> Iterator[tuple[Path, Position]]:
    for path in _newest_first(folder):
        with _reporting_damage(path), open(path, "rb") as opened, np.load(opened) as file:
            if file.zip.testzip():
                raise zipfile.BadZipFile("a checksum does not fit")
            position = json.loads(str(file["position"]))
            yield path, Position(**position | {"history": tuple(position["history"])})


@contextlib.contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"The checkpoint {path} is damaged ({error}): the one before it is used.", stacklevel=2)
