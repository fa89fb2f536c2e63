"""Progress of long work: a bar on a terminal, and a line every half minute elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

#: Seconds between two lines without a terminal.
EVERY = 30.0
#: Numbers from here on are shortened, 12.3k.
READABLE = 10_000


def keras_verbosity() -> int:
    """Returns Keras's `verbose` for a training that also shows its `progress`.

    0, nothing, where both write to a terminal: two bars would overwrite each other. 1, a bar for each epoch, where only
    Keras does, and in a notebook. 2, a line for each epoch, elsewhere.
    """
    if sys.stdout.isatty() and sys.stderr.isatty():
        return 0
    return 1 if sys.stdout.isatty() or "ipykernel" in sys.modules else 2


def write_above(line: str) -> None:
    """Writes a line on standard output, above a bar that is shown."""
    from tqdm import tqdm

    tqdm.write(line)


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Shows on standard error how much of some work is done, and how long the rest takes at the average speed so far.

    Args:
        what: Name of the work, such as "Checking images".
        total: Number of items.
        done: Number of items that were done before.

    Yields:
        A function to call with the number of items that were just done and, optionally, with the position in the work,
        such as "epoch 3 of 20".
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        look = {"desc": what, "unit": "", "unit_scale": total >= READABLE, "dynamic_ncols": True}
        with tqdm(total=total, initial=done, smoothing=0, **look) as bar:

            def show(count: int, place: str = "") -> None:
                bar.set_postfix_str(place, refresh=False)
                bar.update(count)

            yield show
        return
    start = told = time.monotonic()
    before = done

    def advance(count: int, place: str = "") -> None:
        nonlocal done, told
        done, now = done + count, time.monotonic()
        if now - told >= EVERY and done > before:
            told = now
            left = _duration((now - start) / (done - before) * (total - done))
            where = f"{place}, " if place else ""
            print(f"{what}: {done:,} of {total:,}, {where}about {left} left", file=sys.stderr, flush=True)

    yield advance


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
