"""Writes a model's predictions for many images one by one, so that an interrupted command can resume."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from keras_resdense.files import staged

#: Number of images in a row group of a Parquet file.
ROW_GROUP = 4096
#: The file of an image, and its most probable classes with their probabilities.
Answer = tuple[Path, list[tuple[str, float]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A row of `FORMATS`.

    Attributes:
        text: Function that turns an answer into text; None if the format is not text.
        begin: Text before the first answer.
        between: Text between two answers.
        end: Text after the last answer.
        answered: Function that finds, in the content of a file, the last image with a complete answer and the number
            of bytes up to its end; None if a file of this format cannot be resumed.
    """

    text: Callable[[Answer], str] | None
    begin: str = ""
    between: str = ""
    end: str = ""
    answered: Callable[[IO[bytes]], tuple[str | None, int]] | None = None


def write(answers: Iterable[Answer], format: Format, file: IO[str], begun: bool = False) -> None:
    """Writes answers as they come.

    Args:
        answers: Answers that `keras_resdense.runs.predict` yields.
        format: A row of `FORMATS`.
        file: File to write to.
        begun: Whether the file already holds answers.
    """
    for answer in answers:
        file.write((format.between if begun else format.begin) + format.text(answer))
        file.flush()
        begun = True
    file.write(("" if begun else format.begin) + format.end)
    file.flush()


def save(answers: Iterable[Answer], format: Format, path: Path, begun: bool = False) -> None:
    """Appends answers to a file, which is created with the first answer. Parquet is written after the last one."""
    if format.text is None:
        return _save_parquet(answers, path)
    answers = iter(answers)
    first = list(itertools.islice(answers, 1))
    with open(path, "a", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write(itertools.chain(first, answers), format, file, begun)


def resume(path: Path, format: Format) -> str | None:
    """Removes an incomplete answer from the end of a file.

    Returns:
        The last image that the file has an answer for, or None.

    Raises:
        ValueError: If the file holds something else.
    """
    if format.answered is None:
        able = ", ".join(name for name, row in FORMATS.items() if row.answered)
        raise ValueError(f"A file of this format cannot be resumed: use {able}.")
    if not path.exists():
        return None
    with open(path, "r+b") as file:
        try:
            last, size = format.answered(file)
        except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
            raise ValueError(f"{path} does not hold answers of this format ({error}): choose another file.") from error
        file.truncate(size)
    return last


def _text(answer: Answer) -> str:
    path, best = answer
    return "".join(f"{line}\n" for line in (path, *(f"  {share:7.2%}  {name}" for name, share in best)))


_COLUMNS = ("image", "rank", "class", "probability")


def _csv(answer: Answer) -> str:
    path, best = answer
    return _csv_rows([path, rank, name, f"{share:.6f}"] for rank, (name, share) in enumerate(best, start=1))


def _csv_rows(rows: Iterable) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _json(answer: Answer) -> str:
    path, best = answer
    return json.dumps({"image": str(path), "classes": dict(best)})


def _save_parquet(answers: Iterable[Answer], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = (pyarrow.string(), pyarrow.int32(), pyarrow.string(), pyarrow.float32())
    schema = pyarrow.schema(list(zip(_COLUMNS, kinds, strict=True)))
    answers = iter(answers)
    with staged(path) as temporary, parquet.ParquetWriter(temporary, schema) as file:
        while part := list(itertools.islice(answers, ROW_GROUP)):
            # Parquet needs Unicode, which file names need not be.
            names = (os.fsencode(image).decode("utf-8", "backslashreplace") for image, _ in part)
            rows = [
                (name, rank, label, share)
                for name, (_, best) in zip(names, part, strict=True)
                for rank, (label, share) in enumerate(best, start=1)
            ]
            file.write_table(pyarrow.table([list(column) for column in zip(*rows, strict=True)], schema=schema))


def _answered_csv(file: IO[bytes]) -> tuple[str | None, int]:
    """Returns the last image but one, because the last may lack some of its rows."""
    size = 0

    def lines():
        nonlocal size
        for line in file:
            size += len(line)
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(lines())
    head = ",".join(next(reader, ()))
    if not ",".join(_COLUMNS).startswith(head):
        raise ValueError(f"its first line is {head}")
    last, current, end, start = None, None, 0, size
    for row in reader:
        if len(row) < 2:
            break
        if row[1] == "1":
            last, current, end = current, row[0], start
        start = size
    return last, end if last is not None else 0


def _answered_lines(file: IO[bytes]) -> tuple[str | None, int]:
    last, size = None, 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        last, size = json.loads(line)["image"], size + len(line)
    return last, size


#: Formats of answers by their names on the command line.
FORMATS: dict[str, Format] = {
    "text": Format(text=_text),
    "csv": Format(text=_csv, begin=_csv_rows([_COLUMNS]), answered=_answered_csv),
    "json": Format(text=_json, begin="[\n", between=",\n", end="\n]\n"),
    "jsonl": Format(text=lambda answer: f"{_json(answer)}\n", answered=_answered_lines),
    "parquet": Format(text=None),
}
