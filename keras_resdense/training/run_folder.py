"""The folder of a run: who may write to it, and what of it is there already."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from keras_resdense.files import WRITING, remove_leftovers, replacing
from keras_resdense.training import report
from keras_resdense.training.recipes import RECIPE_FILE, Recipe, Settings, describe, read


def open_run(parent: Path, name: str | None, recipe: Recipe, settings: Settings, chief: bool) -> Path:
    """Returns the folder of a run: a new one, or that of the same run where it is not complete."""

    def free(folder: Path) -> bool:
        held = [path for path in folder.glob("*") if not path.name.startswith(WRITING)]
        return not held or _unfinished(folder, recipe, settings)

    if name is None:
        default = f"{recipe.model}_{Path(recipe.data).name}"
        names = itertools.chain([default], (f"{default}_{number}" for number in itertools.count(2)))
        folder = next(parent / name for name in names if free(parent / name))
    else:
        folder = parent / name
        if not free(folder):
            raise ValueError(f"{folder} holds another run, or this one complete: choose another name.")
    if chief:
        with replacing(folder / RECIPE_FILE) as temporary:
            temporary.write_text(describe(recipe, settings))
    return folder


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in a run's folder, and removes what a killed one was writing there.

    Raises:
        ValueError: If another process trains there.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"Another process trains in {folder}: let it, or choose another name.") from error
        except OSError:
            pass  # Not every file system has locks.
        remove_leftovers(folder)
        yield
    finally:
        os.close(handle)


def _unfinished(folder: Path, recipe: Recipe, settings: Settings) -> bool:
    described = folder / RECIPE_FILE
    complete = (folder / report.RESULTS_FILE).exists()
    return not complete and described.exists() and read(described) == (recipe, settings)
