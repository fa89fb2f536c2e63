"""Checkpoints: all that a training needs to go on as if nothing had happened, in one file.

A checkpoint is written to a temporary name, forced to the disk and then renamed, so a file of that name is
whole. The zip format of NumPy's `.npz` carries a checksum of every array: damage is found when it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np

from keras_resdense.files import replacing

#: Checkpoints kept: the newest, and one to fall back to.
KEPT = 2
#: Bytes of an HDF5 file besides the values of a weight, at most.
_HDF5_OVERHEAD = 8192


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
        folder: Where checkpoints are.
        model: To save.
        position: Where its training stands.
        write: Whether to write the file. Replicas on other machines gather values for the one that does.

    Raises:
        OSError: If the file cannot be written. The checkpoints before it stay as they were.
        FloatingPointError: If the weights are not finite. Nothing is written.
    """
    arrays = {f"{index:05}": keras.ops.convert_to_numpy(v) for index, v in enumerate(_variables(model))}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise diverged("The weights are no longer finite", folder, position.step)
    if not write:
        return
    with replacing(folder / f"step-{position.step:09}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, position=json.dumps(dataclasses.asdict(position)), **arrays)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def diverged(what: str, folder: Path, step: int) -> FloatingPointError:
    """Returns the error that says what is no number after a step, and where the last good weights are."""
    kept = f"The last good weights are in {folder}." if newest(folder) else "None were good before."
    return FloatingPointError(
        f"{what} after step {step}. {kept} A lower learning rate or a longer warm-up often helps."
    )


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


def save_weights(path: Path, model: keras.Model) -> None:
    """Writes a model's weights as Keras does.

    Raises:
        OSError: If they cannot be written. What the file was before, it still is.
    """
    size = sum(weight.value.dtype.size * math.prod(weight.shape) for weight in model.weights)
    with replacing(path, size + _HDF5_OVERHEAD * len(model.weights)) as temporary:
        model.save_weights(temporary)


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
