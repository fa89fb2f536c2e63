"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

#: Seconds between two lines where there is no terminal.
EVERY = 30.0


def keras_verbosity() -> int:
    """Returns Keras's `verbose`: 1, a bar, on a terminal or in a notebook; 2, a line for each epoch, elsewhere."""
    return 1 if sys.stdout.isatty() or "ipykernel" in sys.modules else 2


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Tells on standard error how far some work is, and how long the rest will take.

    Args:
        what: What is done, such as "Checking images".
        total: Number of things to do it to.

    Yields:
        A function to call with the number of things that are done, each time some are.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit="", unit_scale=True, dynamic_ncols=True) as bar:
            yield bar.update
        return
    start = told = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, told
        done, now = done + count, time.monotonic()
        if now - told >= EVERY and done:
            told = now
            left = (now - start) / done * (total - done)
            print(f"{what}: {done:,} of {total:,}, about {_duration(left)} left", file=sys.stderr, flush=True)

    yield advance


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
