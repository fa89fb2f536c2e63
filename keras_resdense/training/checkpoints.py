"""Checkpoints: one file with the complete state of a training, from which it resumes exactly.

A checkpoint is written to a temporary name, synchronised to the disk and then renamed, so a file of the final name is
complete. NumPy's `.npz` has a checksum for every array, so damage is detected when a checkpoint is read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np

from keras_resdense.files import remove_digest, staged, write_digest

#: Checkpoints kept: the newest, and one to fall back to.
KEPT = 2
#: Exceptions that a damaged checkpoint raises.
DAMAGE = (
    *(OSError, EOFError, LookupError, TypeError, ValueError, OverflowError, RuntimeError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
#: Bytes of an HDF5 file besides the values of a weight, at most.
_HDF5_OVERHEAD = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """The progress of a training.

    Attributes:
        phase: Number of the phase, from 0.
        step: Steps since the beginning of the training.
        history: One row of measurements for each complete epoch.
        best: Highest accuracy on the held-out images so far.
    """

    phase: int = 0
    step: int = 0
    history: tuple[Mapping[str, float], ...] = ()
    best: float = -1.0


def save(folder: Path, model: keras.Model, position: Position, write: bool = True) -> None:
    """Saves a compiled model with the states of its optimiser, seeds and metrics.

    Args:
        folder: Folder of the checkpoints.
        model: Compiled model to save.
        position: Progress of its training.
        write: Whether to write the file. Replicas on other machines only take part in gathering the values.

    Raises:
        OSError: If the file cannot be written. The checkpoints before it stay as they were.
        FloatingPointError: If the weights are not finite. Nothing is written.
    """
    arrays = {f"{index:05}": keras.ops.convert_to_numpy(v) for index, v in enumerate(_variables(model))}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise diverged("The weights are no longer finite", folder, position.step)
    if not write:
        return
    path = folder / f"step-{position.step:09}.npz"
    with staged(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, position=json.dumps(dataclasses.asdict(position)), **arrays)
    others = [other for other in _newest_first(folder) if other != path]
    for old in others[KEPT - 1 :]:
        old.unlink()


def set_damaged_aside(folder: Path) -> None:
    """Renames damaged checkpoints to `….npz.damaged`, so that they do not replace intact ones, and warns of each."""
    for path in _newest_first(folder):
        try:
            _read_position(path)
        except DAMAGE as error:
            aside = path.replace(path.with_name(f"{path.name}.damaged"))
            warnings.warn(
                f"The checkpoint {path} is damaged ({error}) and was renamed to {aside.name}. Training resumes from the"
                " checkpoint before it or, if there is none, from the start.",
                stacklevel=2,
            )


def diverged(what: str, folder: Path, step: int) -> FloatingPointError:
    """Returns the error for a value that became NaN at a step; it says where the last good weights are."""
    kept = f"The last good weights are in {folder}." if newest(folder) else "None were good before."
    return FloatingPointError(
        f"{what} after step {step}. {kept} A lower learning rate or a longer warm-up often helps."
    )


def restore(folder: Path, model: keras.Model, phase: int) -> Position | None:
    """Restores a compiled model from the newest intact checkpoint of a phase.

    Returns:
        The progress of its training, or None if there is no such checkpoint.

    Raises:
        ValueError: If the checkpoint belongs to another model. No variable was changed then.
    """
    path, position = next(_readable(folder), (None, None))
    if path is None or position.phase != phase:
        return None
    variables = _variables(model)
    with np.load(path) as file:
        arrays = [file[name] for name in sorted(set(file.files) - {"position"})]
    # Metrics come last, and Keras creates their variables in the first step.
    found, wanted = [array.shape for array in arrays][: len(variables)], [tuple(v.shape) for v in variables]
    if found != wanted:
        pairs = itertools.zip_longest(found, wanted, fillvalue="nothing")
        index, (array, variable) = next((index, pair) for index, pair in enumerate(pairs) if pair[0] != pair[1])
        raise ValueError(
            f"The checkpoint {path} does not fit the model: its array {index} has shape {array}, the model's variable"
            f" has {variable}. It was written for another network or by another version of this package: choose"
            " another name."
        )
    for variable, array in zip(variables, arrays, strict=False):
        variable.assign(array)
    return position


def newest(folder: Path) -> Position | None:
    """Returns the progress in the newest intact checkpoint, or None if there is none."""
    return next((position for _, position in _readable(folder)), None)


def save_weights(path: Path, model: keras.Model) -> None:
    """Writes a model's weights as Keras does, and their SHA-256 beside them.

    Raises:
        OSError: If they cannot be written. The old file is unchanged then.
    """
    size = sum(weight.value.dtype.size * math.prod(weight.shape) for weight in model.weights)
    with staged(path, size + _HDF5_OVERHEAD * len(model.weights)) as temporary:
        model.save_weights(temporary)
        # The recorded SHA-256 is that of the old file.
        remove_digest(path)
    write_digest(path)


def _variables(model: keras.Model) -> list[keras.Variable]:
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    known = {id(variable): variable for variable in [*model.variables, *model.optimizer.variables, *metrics]}
    return list(known.values())


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.npz"), reverse=True)


def _readable(folder: Path) -> Iterator[tuple[Path, Position]]:
    for path in _newest_first(folder):
        try:
            yield path, _read_position(path)
        except DAMAGE as error:
            warnings.warn(f"The checkpoint {path} is damaged ({error}) and is skipped.", stacklevel=2)


def _read_position(path: Path) -> Position:
    with open(path, "rb") as opened, np.load(opened) as file:
        if file.zip.testzip():
            raise zipfile.BadZipFile("a checksum does not fit")
        position = json.loads(str(file["position"]))
    return Position(**position | {"history": tuple(position["history"])})
