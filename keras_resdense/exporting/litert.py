"""LiteRT's interpreter for files that may be damaged.

    python -m keras_resdense.exporting.litert FILE

opens a file and computes once. LiteRT trusts most of what a file says, so a damaged one can end the process. This is
therefore tried in another process, unless the file's SHA-256 has been compared with the one beside it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resdense.files import has_digests

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

#: The largest tensor that a file may hold: the limit of the format itself.
MOST_BYTES = 2**31
#: The first line of the other process.
_BEGUN = "opening"


def open_interpreter(path: Path, threads: int, resolver: Any = None) -> Interpreter:
    """Returns an interpreter of a file, with its tensors allocated.

    Args:
        path: Path of the file. If digests are recorded beside it, they must have been checked.
        threads: Number of threads.
        resolver: LiteRT's `OpResolverType`, which selects the kernels; default its own choice.

    Raises:
        ValueError: If LiteRT can't read the file or would end the process, or if the file declares a tensor of more
            than `MOST_BYTES` or pads one to more, because LiteRT would allocate as much memory.
    """
    # A frozen program has no interpreter beside it, and would start itself.
    if path.is_file() and not has_digests(path) and not getattr(sys, "frozen", False):
        _try(path, path.stat().st_mtime_ns)
    return _opened(path, threads, resolver)


@functools.lru_cache
def _try(path: Path, time: int) -> None:
    command = [sys.executable, "-m", __spec__.name, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    begun, _, message = done.stdout.decode("utf-8", "replace").partition("\n")
    # Where Python is embedded, such as in a web server, `sys.executable` may be another program.
    if begun.strip() == _BEGUN and done.returncode:
        raise ValueError(message.strip() or f"LiteRT ends the process that runs it, with {done.returncode}.")


def _opened(path: Path, threads: int, resolver: Any = None) -> Interpreter:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = resolver or OpResolverType.AUTO
    interpreter = Interpreter(model_path=str(path), num_threads=threads, experimental_op_resolver_type=kernels)
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    for tensor in tensors.values():
        _check_size(tensor, tensor["shape"])
    for operation in interpreter._get_ops_details():
        inputs, outputs = operation["inputs"], operation["outputs"]
        if operation["op_name"] in ("PAD", "PADV2") and (paddings := _constant(interpreter, inputs[1])) is not None:
            _check_size(tensors[outputs[0]], tensors[inputs[0]]["shape"] + paddings.sum(axis=-1))
    interpreter.allocate_tensors()
    return interpreter


def _constant(interpreter: Interpreter, index: int) -> np.ndarray | None:
    """Returns a tensor of the file, or None for one that is computed."""
    try:
        return interpreter.get_tensor(index)
    except ValueError:
        return None


def _check_size(tensor: dict[str, Any], shape: np.ndarray) -> None:
    size = math.prod(map(int, shape)) * np.dtype(tensor["dtype"]).itemsize
    if size > MOST_BYTES:
        raise ValueError(
            f"its tensor {tensor['name']!r} of shape {tuple(shape.tolist())} takes {size:,} bytes; "
            f"the largest that is read takes {MOST_BYTES:,}."
        )


def _compute_zeros(interpreter: Interpreter) -> None:
    for source in interpreter.get_input_details():
        interpreter.set_tensor(source["index"], np.zeros(source["shape"], source["dtype"]))
    interpreter.invoke()


def main() -> None:
    print(_BEGUN, flush=True)
    try:
        interpreter = _opened(Path(sys.argv[1]), 1)
        # Not every file can run alone, or take two images.
        with contextlib.suppress(RuntimeError, ValueError):
            _compute_zeros(interpreter)
            for source in interpreter.get_input_details():
                if source["shape_signature"][0] in (-1, 1):
                    interpreter.resize_tensor_input(source["index"], [2, *source["shape"][1:]])
            interpreter.allocate_tensors()
            _compute_zeros(interpreter)
    except Exception as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
