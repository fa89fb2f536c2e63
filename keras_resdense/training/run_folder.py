"""The folder of a run: who may write to it, and what of it is there already."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from keras_resdense.data.examples import ImageData
from keras_resdense.files import WRITING, locked, remove_leftovers, replacing
from keras_resdense.training import report
from keras_resdense.training.agreement import DATA_FILE, write_data
from keras_resdense.training.recipes import RECIPE_FILE, Recipe, Settings, describe, read

#: A run's file that says which image is trained on and which held out.
SPLIT_FILE = "split.json.gz"
#: What a run writes before its first checkpoint. A folder that holds no more is as good as a new one.
BEFORE_TRAINING = frozenset((RECIPE_FILE, DATA_FILE, SPLIT_FILE, "tensorboard", "checkpoints"))


def choose_folder(parent: Path, name: str | None, recipe: Recipe, settings: Settings) -> Path:
    """Returns the folder of a run: a new one, or that of the same run where it is not complete.

    Raises:
        ValueError: If the name is taken.
    """

    def free(folder: Path) -> bool:
        return is_untrained(folder) or _is_unfinished(folder, recipe, settings)

    if name is None:
        default = f"{recipe.model}_{Path(recipe.data).name}"
        names = itertools.chain([default], (f"{default}_{number}" for number in itertools.count(2)))
        return next(parent / name for name in names if free(parent / name))
    if not free(parent / name):
        folder = parent / name
        unfinished = (folder / RECIPE_FILE).exists() and not (folder / report.RESULTS_FILE).exists()
        way = f", or go on with that one (--recipe {folder / RECIPE_FILE})" if unfinished else ""
        raise ValueError(f"{folder} holds another run, or this one complete: choose another name{way}.")
    return parent / name


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a run's folder where it is missing, and keeps other processes from training in it.

    It removes what a killed process was writing there, and in the end the folder itself if nothing is in it.

    Raises:
        OSError: If the folder cannot be made.
        ValueError: If another process trains there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The folder {folder} cannot be made ({error}): choose another --folder or --name.") from error
    with locked(folder, f"Another process trains in {folder}: let it, or choose another name."):
        remove_leftovers(folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()


def begin(folder: Path, recipe: Recipe, settings: Settings, data: ImageData) -> None:
    """Writes down which run a folder holds, and on which data."""
    write_data(folder, data)
    if data.write_split:
        data.write_split(folder / SPLIT_FILE)
    with replacing(folder / RECIPE_FILE) as temporary:
        temporary.write_text(describe(recipe, settings))


def split_of(folder: Path) -> Path | None:
    """Returns the file of a run that says how its data are split; None where it has none."""
    return folder / SPLIT_FILE if (folder / SPLIT_FILE).is_file() else None


def check_kept(folder: Path) -> None:
    """Makes sure that nobody has deleted the folder of a run that trains.

    Raises:
        OSError: If its recipe is gone.
    """
    if not (folder / RECIPE_FILE).is_file():
        raise OSError(
            f"{folder / RECIPE_FILE} is gone: someone has deleted or emptied the run's folder while it trained, and"
            " what was written before is lost. The same command begins the run anew."
        )


def is_untrained(folder: Path) -> bool:
    """Says whether a folder is missing, or holds nothing but what a run writes before its first checkpoint."""
    held = {path.name for path in folder.glob("*") if not path.name.startswith(WRITING)}
    return held <= BEFORE_TRAINING and not any(
        path for path in folder.glob("checkpoints/*") if not path.name.startswith(WRITING)
    )


def _is_unfinished(folder: Path, recipe: Recipe, settings: Settings) -> bool:
    described = folder / RECIPE_FILE
    complete = (folder / report.RESULTS_FILE).exists()
    if complete or not described.exists():
        return False
    before, how = read(described)
    # How to go on is not what the run is.
    return (before, dataclasses.replace(how, on_changed_data=settings.on_changed_data)) == (recipe, settings)
