"""Checks of arguments. Their errors say what was received, what is allowed and how to fix it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

Row = TypeVar("Row")
#: Least similarity, 0–1, of a name to one that an error suggests.
_SIMILAR = 0.65


def require(row: object, field: str, holds: bool, allowed: str) -> None:
    """Raises a ValueError that names the field, what it got and what is allowed, unless `holds`."""
    if not holds:
        raise ValueError(f"{type(row).__name__}.{field} is {getattr(row, field)!r}; it must be {allowed}.")


def require_kinds(row: Any) -> None:
    """Raises a ValueError unless each field of a dataclass is of the kind of its default; fractions must be finite."""
    for field in dataclasses.fields(row):
        value, default = getattr(row, field.name), field.default
        if isinstance(default, bool):
            require(row, field.name, isinstance(value, bool), "True or False")
        elif isinstance(default, str):
            require(row, field.name, isinstance(value, str), "a string")
        elif isinstance(default, float):
            require(row, field.name, _is_finite(value), "a finite number")
            object.__setattr__(row, field.name, _plain(value))
        elif isinstance(default, tuple):
            numbers_only = isinstance(value, tuple) and all(map(_is_finite, value))
            require(row, field.name, numbers_only, "a tuple of finite numbers")
            object.__setattr__(row, field.name, tuple(map(_plain, value)))


def _plain(number: Any) -> int | float:
    """Converts a NumPy number to a Python number, which JSON can hold."""
    return int(number) if isinstance(number, numbers.Integral) else float(number)


def _is_finite(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def require_whole(row: object, *fields: str, least: int = 1) -> None:
    """Raises a ValueError unless the fields are whole numbers of at least `least`, and makes them Python integers."""
    for field in fields:
        value = whole(getattr(row, field), least)
        require(row, field, value is not None, f"a whole number of at least {least}")
        # Rows are frozen, and JSON cannot hold NumPy numbers.
        object.__setattr__(row, field, value)


def whole(value: object, least: int = 1) -> int | None:
    """Returns a Python integer for a Python or NumPy integer of at least `least`, and None for anything else."""
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if number and value >= least else None


def require_rate(row: object, *fields: str) -> None:
    """Raises a ValueError unless the fields are shares in [0, 1)."""
    for field in fields:
        require(row, field, 0 <= getattr(row, field) < 1, "in [0, 1)")


def require_positive(row: object, *fields: str) -> None:
    """Raises a ValueError unless the fields are 0 or more."""
    for field in fields:
        require(row, field, getattr(row, field) >= 0, "0 or more")


def require_choice(row: object, field: str, allowed: Collection[str]) -> None:
    """Raises a ValueError unless the field is one of some names."""
    require(row, field, getattr(row, field) in allowed, f"one of {', '.join(allowed)}")


def require_tensorflow(what: str) -> None:
    """Raises a ValueError unless Keras runs on TensorFlow."""
    import keras

    if (backend := keras.backend.backend()) != "tensorflow":
        raise ValueError(
            f"{what} needs TensorFlow, but Keras runs on {backend}. Save the model as .keras, and open it in a process "
            "with the environment variable KERAS_BACKEND=tensorflow."
        )


def missing_packages(names: Collection[str]) -> list[str]:
    """Returns those packages that are not installed, by the names that Python imports."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def require_packages(what: object, needed: Collection[str], to_install: Collection[str] = ()) -> None:
    """Raises a ValueError with a pip command unless some packages are installed.

    Args:
        what: What needs the packages.
        needed: Names of the packages, as Python imports them.
        to_install: Names to install if one is missing; default the missing ones.
    """
    if missing := missing_packages(needed):
        raise ValueError(f"{what} needs {', '.join(missing)}: pip install {' '.join(to_install or missing)}")


def pick(table: Mapping[str, Row], name: str, kind: str, where: str = "") -> Row:
    """Returns a row of a table.

    Args:
        table: The rows by name, in lower case.
        name: Name of the row to return, in any case.
        kind: What a row is, such as "recipe".
        where: Sentence that says where all names are listed; by default the error lists them.

    Raises:
        ValueError: If there is no such row. The error names the closest ones.
    """
    if (key := str(name).lower()) in table:
        return table[key]
    where = where or f"There are {', '.join(table) or 'none'}."
    raise ValueError(f"There is no {kind} {name!r}.{closest(key, dict(zip(table, table, strict=True)))} {where}")


def closest(name: str, known: Mapping[str, str]) -> str:
    """Returns a sentence on the names that a mistyped one may mean, or "" if none is similar.

    Args:
        name: The mistyped name.
        known: What to show for each allowed name in lower case.
    """
    near = difflib.get_close_matches(name.lower(), known, cutoff=_SIMILAR)
    return f" Closest: {', '.join(known[found] for found in near)}." if near else ""
