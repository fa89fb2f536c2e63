"""The folder of a run: its name, its lock and its first files."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from keras_resdense.data.examples import ImageData
from keras_resdense.files import WRITING, locked, remove_leftovers, write_text
from keras_resdense.training import report
from keras_resdense.training.agreement import DATA_FILE, write_data
from keras_resdense.training.recipes import RECIPE_FILE, Recipe, Settings, describe, read

#: File of a run that lists the training images and the held-out images.
SPLIT_FILE = "split.json.gz"
#: A run's folder of events for TensorBoard.
TENSORBOARD = "tensorboard"
#: Files that a run writes before its first checkpoint. A folder that holds only these counts as new.
BEFORE_TRAINING = frozenset((RECIPE_FILE, DATA_FILE, SPLIT_FILE, TENSORBOARD, "checkpoints"))


def choose_folder(parent: Path, name: str | None, recipe: Recipe, settings: Settings) -> Path:
    """Returns the folder of a run: a new one, or that of the same run if it is incomplete.

    Raises:
        ValueError: If the name is taken.
    """

    def free(folder: Path) -> bool:
        return is_untrained(folder) or begun_settings(folder, recipe, settings) is not None

    if name is None:
        default = f"{recipe.model}_{Path(recipe.data).name}"
        names = itertools.chain([default], (f"{default}_{number}" for number in itertools.count(2)))
        return next(parent / name for name in names if free(parent / name))
    if not free(parent / name):
        folder = parent / name
        unfinished = (folder / RECIPE_FILE).exists() and not (folder / report.RESULTS_FILE).exists()
        way = f", or resume the run there (--recipe {folder / RECIPE_FILE})" if unfinished else ""
        raise ValueError(f"{folder} holds another run, or this one is complete: choose another name{way}.")
    return parent / name


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Creates a run's folder if it is missing, and keeps other processes from training in it.

    It removes half-written files of killed processes and, at the end, the folder if that is empty.

    Raises:
        OSError: If the folder cannot be created.
        ValueError: If another process trains there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The folder {folder} cannot be created ({error}): choose another --folder or --name.") from error
    with locked(folder, f"Another process trains in {folder}: wait for it, or choose another name."):
        remove_leftovers(folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()


def begin(folder: Path, recipe: Recipe, settings: Settings, data: ImageData) -> None:
    """Records a run and its data in the run's folder."""
    write_data(folder, data)
    if data.write_split:
        data.write_split(folder / SPLIT_FILE)
    write_text(folder / RECIPE_FILE, describe(recipe, settings))


def split_of(folder: Path) -> Path | None:
    """Returns the file that records how a run's data are split; None if there is none."""
    return folder / SPLIT_FILE if (folder / SPLIT_FILE).is_file() else None


def check_kept(folder: Path) -> None:
    """Checks that nobody has deleted the folder of a run during training.

    Raises:
        OSError: If its recipe is missing.
    """
    if not (folder / RECIPE_FILE).is_file():
        raise OSError(
            f"{folder / RECIPE_FILE} is gone: someone has deleted or emptied the run's folder while it trained, and"
            " what was written before is lost. The same command starts the run from the beginning."
        )


@contextlib.contextmanager
def naming_unwritten_events(folder: Path) -> Iterator[None]:
    """Replaces TensorFlow's error for TensorBoard events that cannot be written by an OSError that says what to do."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if "events file" not in str(error):
            raise
        raise OSError(
            f"TensorBoard's files in {folder / TENSORBOARD} cannot be written ({error.message.splitlines()[0]}). The"
            " last checkpoint is complete: the same command resumes from it once there is room."
        ) from error


def is_untrained(folder: Path) -> bool:
    """Returns whether a folder is missing, or holds only files that a run writes before its first checkpoint."""
    held = {path.name for path in folder.glob("*") if not path.name.startswith(WRITING)}
    return held <= BEFORE_TRAINING and not any(
        path for path in folder.glob("checkpoints/*") if not path.name.startswith(WRITING)
    )


def begun_settings(folder: Path, recipe: Recipe, settings: Settings) -> Settings | None:
    """Returns the settings that an unfinished run began with; None if the folder does not hold this run."""
    described = folder / RECIPE_FILE
    complete = (folder / report.RESULTS_FILE).exists()
    if complete or not described.exists():
        return None
    before, how = read(described)
    # This setting concerns resuming and is not part of the run's identity.
    same = dataclasses.replace(settings, on_changed_data=how.on_changed_data)
    if settings.precision == "auto":
        same = dataclasses.replace(same, precision=how.precision)
    return how if (before, how) == (recipe, same) else None
