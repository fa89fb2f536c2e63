"""Checks that all workers of a training agree, and that a resumed run uses the same data."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_resdense.data.examples import ImageData
from keras_resdense.files import write_text
from keras_resdense.training import workers
from keras_resdense.training.recipes import Recipe, Settings

#: File of a run with facts about its data when it began.
DATA_FILE = "data.json"
#: Packages whose versions affect the results of a training.
PACKAGES = ("keras-resdense", "keras", "tensorflow")
#: Largest number of differences in an error.
SHOWN = 10


def check_workers(strategy: Any, recipe: Recipe, settings: Settings, data: ImageData) -> None:
    """Checks that all workers use the same recipe, settings, versions and data.

    Raises:
        ValueError: On every worker, if something differs. The error says what differs and where.
    """
    # The folder of TFDS may differ between machines.
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
            f"The workers would not train the same. In comparison with {names[0]}:\n  "
            + "\n  ".join(_shortened(found))
            + "\nGive all of them the same command, the same data and the same versions."
        )


@contextlib.contextmanager
def stopping_together(strategy) -> Iterator[None]:
    """Stops all workers if one of them fails, so that none waits for it.

    Raises:
        ValueError: If another worker has failed. The error says which one and why.
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
    """Checks that a resumed run uses the data that it began with. Runs of older versions are not checked.

    Raises:
        ValueError: If the data or their split have changed. The error says how.
    """
    if not (folder / DATA_FILE).is_file():
        return
    before = json.loads((folder / DATA_FILE).read_text(encoding="utf-8"))
    if found := _differences(before, data.contents):
        # A split that can change is recorded in the run.
        way = ", resume with the old images and their split (--on-changed-data old_split)" if data.write_split else ""
        raise ValueError(
            f"The data have changed since the run in {folder} began, and images that were held out may now be trained"
            " on:\n  "
            + "\n  ".join(_shortened(found))
            + f"\nPut them back{way}, or start a new run with another --name."
        )


def write_data(folder: Path, data: ImageData) -> None:
    """Records facts about the data of a run for `check_data`."""
    write_text(folder / DATA_FILE, json.dumps(dict(data.contents), indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def naming_changed_files(data: ImageData) -> Iterator[None]:
    """Replaces TensorFlow's errors of reading by a ValueError that names images that changed after their check."""
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
