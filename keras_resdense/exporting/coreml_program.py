"""Computes the program of a Core ML package with NumPy, independently of Core ML.

Source: the definitions of the operations in Core ML's Model Intermediate Language, `iOS15`, and the format of files of
weights, both as published with coremltools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
#: First bytes of a constant's header in a file of weights.
_SENTINEL = 0xDEADBEEF
_IMMEDIATE = {"floats": "float32", "ints": "int32", "bools": "bool", "strings": "object", "bytes": "float16"}

Compute = Callable[[np.ndarray], np.ndarray]


def read_program(path: Path) -> tuple[Compute, tuple[int, int, int], tuple[int, ...], dict[str, str]]:
    """Reads a package that takes one image.

    Args:
        path: Path of the package.

    Returns:
        A function from an image `(1, height, width, channels)` to its outputs `(1, …)`, the shape of an image, the
        shape of its outputs, and the metadata that are not Core ML's own.

    Raises:
        ValueError: If the program has an unsupported operation.
    """
    from coremltools.proto import MIL_pb2, Model_pb2

    model = Model_pb2.Model.FromString((path / MODEL).read_bytes())
    (source,) = model.description.input
    image = source.type.imageType
    (function,) = model.mlProgram.functions.values()
    block = function.block_specializations[function.opset]
    unknown = {operation.type for operation in block.operations} - {"const", *_OPERATIONS}
    if unknown or not image.width:
        raise ValueError(f"its program does not take an image, or has operations that are not read: {unknown}")
    weights = (path / _WEIGHTS).read_bytes()
    types = {MIL_pb2.FLOAT16: "float16", MIL_pb2.FLOAT32: "float32", MIL_pb2.INT32: "int32"}
    constants = {
        operation.outputs[0].name: _constant(operation.attributes["val"], weights, types)
        for operation in block.operations
        if operation.type == "const"
    }

    def compute(images: np.ndarray) -> np.ndarray:
        values = {source.name: np.moveaxis(images.astype("float32"), -1, 1)}
        for operation in block.operations:
            if operation.type == "const":
                continue
            given = {
                name: _argument(value, constants | values, weights, types) for name, value in operation.inputs.items()
            }
            if operation.type == "classify":
                return given["probabilities"]
            made = operation.outputs[0]
            # Between operations, numbers have the precision that the program declares.
            dtype = types.get(made.type.tensorType.dataType, "float32")
            with np.errstate(over="ignore"):
                values[made.name] = _OPERATIONS[operation.type](given).astype(dtype).astype("float32")
        return values[block.outputs[0]]

    last = block.operations[-1]
    target = last.inputs["probabilities"].arguments[0].name if last.type == "classify" else block.outputs[0]
    (outputs,) = (made for operation in block.operations for made in operation.outputs if made.name == target)
    sides = tuple(side.constant.size for side in outputs.type.tensorType.dimensions[1:])
    channels = 1 if image.colorSpace == image.GRAYSCALE else 3
    return compute, (image.height, image.width, channels), sides, dict(model.description.metadata.userDefined)


def _argument(argument: Any, values: Mapping[str, Any], weights: bytes, types: Mapping[int, str]) -> Any:
    """Returns the value of an operation's input: a value, or a list of values if several are given."""
    found = [
        values[part.name] if part.WhichOneof("binding") == "name" else _constant(part.value, weights, types)
        for part in argument.arguments
    ]
    return found[0] if len(found) == 1 else found


def _constant(value: Any, weights: bytes, types: Mapping[int, str]) -> Any:
    if value.immediateValue.HasField("list"):
        return [_constant(part, weights, types) for part in value.immediateValue.list.values]
    tensor = value.type.tensorType
    shape = [side.constant.size for side in tensor.dimensions]
    if value.WhichOneof("value") == "blobFileValue":
        sentinel, _, size, start = struct.unpack_from("<IIQQ", weights, value.blobFileValue.offset)
        if sentinel != _SENTINEL:
            raise ValueError(f"its weights have no constant at {value.blobFileValue.offset}")
        return np.frombuffer(weights[start : start + size], types[tensor.dataType]).reshape(shape).astype("float32")
    kind = value.immediateValue.tensor.WhichOneof("value")
    held = getattr(value.immediateValue.tensor, kind).values
    array = np.frombuffer(held, _IMMEDIATE[kind]) if kind == "bytes" else np.array(list(held), _IMMEDIATE[kind])
    return array.reshape(shape) if shape else array.tolist()[0]


def _padding(given: Mapping[str, Any], sides: tuple[int, ...], kernel: list[int]) -> list[tuple[int, int]]:
    """Returns how much to pad height and width, before and after."""
    kind, strides = given["pad_type"], given["strides"]
    if kind == "valid":
        return [(0, 0)] * 2
    if kind == "custom":
        return [tuple(pair) for pair in np.reshape(given["pad"], (2, 2)).tolist()]
    if kind != "same":
        raise ValueError(f"padding {kind!r} is not read")
    needed = [
        max(0, (-(-side // step) - 1) * step + size - side)
        for side, step, size in zip(sides, strides, kernel, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in needed]


def _windows(x: np.ndarray, kernel: list[int], strides: list[int], padding, fill: float = 0) -> np.ndarray:
    """Returns all windows of images `(1, channels, height, width)`: `(1, channels, rows, columns, *kernel)`."""
    x = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))
    return windows[:, :, :: strides[0], :: strides[1]]


def _conv(given: Mapping[str, Any]) -> np.ndarray:
    x, weight, groups = given["x"], given["weight"], int(given.get("groups", 1))
    if np.any(np.asarray(given.get("dilations", 1)) != 1):
        raise ValueError("dilated convolutions are not read")
    kernel = list(weight.shape[2:])
    windows = _windows(x, kernel, given["strides"], _padding(given, x.shape[2:], kernel))
    rows, columns = windows.shape[2:4]
    # (groups, inputs of a group × kernel, positions) and (groups, filters of a group, inputs × kernel)
    patches = windows[0].reshape(groups, -1, rows, columns, *kernel).transpose(0, 1, 4, 5, 2, 3)
    patches = patches.reshape(groups, -1, rows * columns)
    made = weight.reshape(groups, weight.shape[0] // groups, -1) @ patches
    made = made.reshape(1, weight.shape[0], rows, columns)
    return made + given["bias"].reshape(1, -1, 1, 1) if "bias" in given else made


def _max_pool(given: Mapping[str, Any]) -> np.ndarray:
    x, kernel = given["x"], given["kernel_sizes"].tolist()
    return _windows(x, kernel, given["strides"], _padding(given, x.shape[2:], kernel), -np.inf).max((-2, -1))


def _avg_pool(given: Mapping[str, Any]) -> np.ndarray:
    x, kernel = given["x"], given["kernel_sizes"].tolist()
    padding = _padding(given, x.shape[2:], kernel)
    total = _windows(x, kernel, given["strides"], padding).sum((-2, -1))
    counted = np.ones_like(x) if given.get("exclude_padding_from_average", False) else None
    if counted is None:
        return total / np.prod(kernel)
    return total / _windows(counted, kernel, given["strides"], padding).sum((-2, -1))


def _pad(given: Mapping[str, Any]) -> np.ndarray:
    if given["mode"] != "constant":
        raise ValueError(f"padding by {given['mode']!r} is not read")
    pairs = np.reshape(given["pad"], (-1, 2)).tolist()
    none = [(0, 0)] * (given["x"].ndim - len(pairs))
    return np.pad(given["x"], [*none, *pairs], constant_values=given["constant_val"])


def _softmax(given: Mapping[str, Any]) -> np.ndarray:
    powers = np.exp(given["x"] - given["x"].max(given["axis"], keepdims=True))
    return powers / powers.sum(given["axis"], keepdims=True)


def _matmul(given: Mapping[str, Any]) -> np.ndarray:
    x, y = (np.swapaxes(given[name], -1, -2) if given.get(f"transpose_{name}", False) else given[name] for name in "xy")
    return x @ y


_OPERATIONS: dict[str, Callable[[Mapping[str, Any]], np.ndarray]] = {
    "add": lambda given: given["x"] + given["y"],
    "avg_pool": _avg_pool,
    "cast": lambda given: given["x"],
    "clip": lambda given: np.clip(given["x"], given["alpha"], given["beta"]),
    "classify": lambda given: given["probabilities"],
    "concat": lambda given: np.concatenate(given["values"], given["axis"]),
    "conv": _conv,
    "linear": lambda given: given["x"] @ given["weight"].T + given.get("bias", 0),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "mul": lambda given: given["x"] * given["y"],
    "pad": _pad,
    "reduce_mean": lambda given: given["x"].mean(tuple(given["axes"].tolist()), keepdims=given["keep_dims"]),
    "relu": lambda given: np.maximum(given["x"], 0),
    "reshape": lambda given: given["x"].reshape(given["shape"].tolist()),
    "round": lambda given: np.round(given["x"]),
    "sigmoid": lambda given: (1 + np.tanh(given["x"] / 2)) / 2,
    "softmax": _softmax,
    "squeeze": lambda given: given["x"].squeeze(tuple(given["axes"].tolist()) if "axes" in given else None),
    "sub": lambda given: given["x"] - given["y"],
    "transpose": lambda given: given["x"].transpose(given["perm"].tolist()),
}
