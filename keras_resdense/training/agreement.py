"""What has to be the same: on every worker of a training, and at every start of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_resdense.data.examples import ImageData
from keras_resdense.files import staged
from keras_resdense.training import workers
from keras_resdense.training.recipes import Recipe, Settings

#: A run's file with what its data held when it began.
DATA_FILE = "data.json"
#: Distributions whose versions decide what a training computes.
PACKAGES = ("keras-resdense", "keras", "tensorflow")
#: Differences that an error lists.
SHOWN = 10


def check_workers(strategy: Any, recipe: Recipe, settings: Settings, data: ImageData) -> None:
    """Makes sure that all workers train alike; alone, a worker always does.

    Raises:
        ValueError: On every worker, if recipe, settings, versions or data differ. It says what differs and where.
    """
    # Where TFDS keeps its files may differ from machine to machine.
    rows = dataclasses.asdict(recipe) | dataclasses.asdict(dataclasses.replace(settings, data_dir=""))
    facts = {name: str(value) for name, value in rows.items()} | dict(data.contents)
    facts |= {name: importlib.metadata.version(name) for name in PACKAGES}
    first, *others = (json.loads(text) for text in workers.gather(strategy, json.dumps(facts)))
    names = workers.worker_names()
    found = [
        f"{name}: {difference}"
        for name, other in zip(names[1:], others, strict=False)
        for difference in _differences(first, other)
    ]
    if found:
        raise ValueError(
            f"The workers would not train alike. In comparison with {names[0]}:\n  "
            + "\n  ".join(_shortened(found))
            + "\nGive all of them the same command, the same data and the same versions."
        )


@contextlib.contextmanager
def stopping_together(strategy) -> Iterator[None]:
    """Lets an error of one worker stop all of them, so that none waits for it.

    Raises:
        ValueError: Where another worker has failed. It says which, and why.
    """
    failure = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    said = workers.gather(strategy, str(failure or ""))
    if failure:
        raise failure
    failed = [f"{name}: {text}" for name, text in zip(workers.worker_names(), said, strict=False) if text]
    if failed:
        raise ValueError("Another worker has stopped. " + "\n".join(failed))


def check_data(folder: Path, data: ImageData) -> None:
    """Makes sure that a run goes on with the data that it began with; runs of older versions do not know.

    Raises:
        ValueError: If the data, or how they are split, have changed. It says how.
    """
    if not (folder / DATA_FILE).is_file():
        return
    before = json.loads((folder / DATA_FILE).read_text(encoding="utf-8"))
    if found := _differences(before, data.contents):
        # Where the data have a split that can change, it is kept.
        way = (
            ", go on with the images and the split of before (--on-changed-data old_split)" if data.write_split else ""
        )
        raise ValueError(
            f"The data have changed since the run in {folder} began, and images that were held out may now be trained"
            " on:\n  "
            + "\n  ".join(_shortened(found))
            + f"\nPut them back{way}, or begin a new run with another --name."
        )


def write_data(folder: Path, data: ImageData) -> None:
    """Writes down what the data of a run hold, for `check_data`."""
    with staged(folder / DATA_FILE) as temporary:
        temporary.write_text(json.dumps(dict(data.contents), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def naming_changed_files(data: ImageData) -> Iterator[None]:
    """Turns TensorFlow's errors of reading into one that names the images that changed after their check.

    Raises:
        ValueError: In their place.
    """
    import tensorflow as tf

    errors = tf.errors
    try:
        yield
    except (errors.InvalidArgumentError, errors.NotFoundError, errors.PermissionDeniedError, errors.UnknownError) as e:
        if not (faults := data.recheck()):
            raise
        raise ValueError(
            "Images have changed since they were checked:\n  "
            + "\n  ".join(faults)
            + "\nPut them back, then the same command resumes from the last checkpoint."
        ) from e


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name} is {now.get(name, 'missing')} instead of {before.get(name, 'missing')}"
        for name in [*before, *(name for name in now if name not in before)]
        if before.get(name) != now.get(name)
    ]


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"and {len(lines) - SHOWN} more"]
