"""Keeps TensorFlow's routine messages, which bypass Python, from the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

#: The beginnings of lines that report no failure: information and warnings of Abseil's log, in both of its formats, the
#: errors that TensorFlow logs where there is no GPU or it takes another kernel, and what its TFLite converter and
#: runtime print without a log.
ROUTINE = re.compile(
    rb"[IW]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IW] "
    rb"|E\d{4} .*(failed call to cuInit|Unable to register cu|oneDNN supports .* Falling back)"
    rb"|WARNING: All log messages before absl::InitializeLog|WARNING:absl:"
    rb"|To enable the following instructions:|fully_quantize: |INFO: "
)
#: TensorFlow's warning for batches of several sizes, such as the last one of an evaluation.
RETRACING = "triggered tf.function retracing"
#: Line that tells the filter that the command has ended.
_END = b"\0the end\n"


def format_warning(message: Warning | str, *_: object) -> str:
    """Formats a warning for users of the command line, without the line of code that raised it."""
    return f"keras-resdense: warning: {message}\n"


@contextlib.contextmanager
def native_log_held_back() -> Iterator[None]:
    """Keeps routine messages that TensorFlow writes to standard error from the terminal.

    A child process reads what C++ code writes to file descriptor 2, and passes on all lines except `ROUTINE`. If this
    process crashes in C++ code, the child also writes the lines that it has held back. `sys.stderr` still writes
    directly to the terminal. Without `os.fork`, as on Windows, the messages of C++ code are not held back.
    """
    with _filtered(logging.getLogger("tensorflow"), lambda record: RETRACING not in record.getMessage()):
        if not hasattr(os, "fork"):
            yield
            return
        with _descriptor_held_back():
            yield


@contextlib.contextmanager
def _filtered(logger: logging.Logger, wanted: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


@contextlib.contextmanager
def _descriptor_held_back() -> Iterator[None]:
    sys.stderr.flush()
    reading, writing = os.pipe()
    terminal, python_stderr = os.dup(2), sys.stderr
    child = os.fork()
    if not child:
        os.close(writing)
        _pass_on(reading, terminal)
        os._exit(0)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        with open(os.dup(terminal), "w", buffering=1, encoding=python_stderr.encoding, errors="replace") as direct:
            sys.stderr = direct
            yield
    finally:
        sys.stderr = python_stderr
        os.write(2, _END)
        os.dup2(terminal, 2)
        os.close(terminal)
        os.waitpid(child, 0)


def _pass_on(reading: int, terminal: int) -> None:
    # Ctrl-C and a shell's SIGTERM reach the whole group, but the parent decides when to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    held = []
    with open(reading, "rb") as lines:
        for line in lines:
            if line.endswith(_END):
                return
            if ROUTINE.match(line):
                held.append(line)
            else:
                os.write(terminal, line)
    os.write(terminal, b"".join(held))
