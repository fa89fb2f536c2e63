"""Measurements as JSON, and what pages say of them between two comments.

A benchmark `NAME.py` writes `NAME.json`. Its function `tables` turns this into tables and sentences, by the name in
their comments, and `draw`, if it has one, into a chart. `run_all.py` puts them in their places.
"""

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from keras_resdense.files import write_text

HERE = Path(__file__).parent
PAGES = (HERE / "README.md", HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md")))
#: What a page says of a benchmark: name and text.
BLOCK = re.compile(r"(?<=<!-- )(\w+) -->\n(.*?)\n(?=<!-- end of \1 -->)", re.DOTALL)
#: Colours that colour-blind people can distinguish (Okabe and Ito).
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
#: Characters of a line of JSON.
WIDTH = 120


def add_json(parser: argparse.ArgumentParser, script: str) -> None:
    """Adds the option for the file of the results, by default the one beside the script."""
    default = Path(script).with_suffix(".json")
    parser.add_argument("--json", type=Path, default=default, help=f"file of the results; default {default.name}")


def load(path: Path, otherwise: object) -> object:
    """Returns the measurements in a file, or something else if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise


def dumps(value: object, depth: int = 0) -> str:
    """Returns JSON in which whatever fits on a line stands on one."""
    flat = json.dumps(value)
    if len(flat) + depth <= WIDTH or not isinstance(value, (dict, list)):
        return flat
    if isinstance(value, dict):
        parts = [f"{json.dumps(str(key))}: {dumps(part, depth + 1)}" for key, part in value.items()]
    else:
        parts = [dumps(part, depth + 1) for part in value]
    inside = f"\n{' ' * (depth + 1)}"
    return f"{flat[0]}{inside}{f',{inside}'.join(parts)}\n{' ' * depth}{flat[-1]}"


def save(path: Path, found: object) -> None:
    write_text(path, dumps(found) + "\n")


def replace(entries: Iterable[dict], new: dict, *keys: str) -> list[dict]:
    """Returns the entries with a new one, without those that have the same values of some keys."""
    return [*(old for old in entries if any(old[key] != new[key] for key in keys)), new]


def cell(value: float | None, form: str = ".2f", goal: float = 0) -> str:
    """Returns a figure for a table: bold below the goal, empty without a value."""
    text = "" if value is None else f"{value:{form}}"
    return f"**{text}**" if text and value < goal else text


def digits(value: float) -> str:
    """Returns a positive figure with three digits, or more before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def describe(machine: dict) -> str:
    """Returns a description of `stopwatch.machine()` for a sentence."""
    kinds = {"AVX-512": "avx512", "AMX": "amx"}
    has = [kind for kind, start in kinds.items() if any(one.startswith(start) for one in machine["instructions"])]
    return f"{machine['cores']} cores of {machine['processor']}" + (f" with {' and '.join(has)}" if has else "")


def list_versions(versions: Mapping[str, str]) -> str:
    """Returns other packages than ours with their versions, for a sentence."""
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "keras_resdense")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Returns a Markdown table, whose first columns are words and whose others are figures; without empty columns."""
    columns = [column for column in zip(header, *rows, strict=True) if any(column[1:])]
    above, *below = (f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    return "\n".join([above, "|" + "---|" * words + "---:|" * (len(columns) - words), *below])


def insert(texts: Mapping[str, str]) -> None:
    """Writes tables and sentences between their comments, on every page that has these."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = BLOCK.sub(lambda block: f"{block[1]} -->\n{texts.get(block[1], block[2])}\n", before)
        if after != before:
            write_text(page, after)
