"""Reports how a phone runs a `.tflite`: its operators, which of them accelerators support, its memory and its MACs."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_resdense.exporting.litert import open_interpreter
from keras_resdense.files import check_digests

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

#: An operator of a file, as the interpreter lists it.
Node = Mapping[str, Any]

#: Multiplications for each number of an operator's output, from the shape of its kernel in the file:
#: `(filters, height, width, channels)`, `(1, height, width, channels)` and `(outputs, inputs)`.
_MULTIPLICATIONS = {
    "CONV_2D": lambda kernel: math.prod(kernel[1:]),
    "DEPTHWISE_CONV_2D": lambda kernel: math.prod(kernel[1:3]),
    "FULLY_CONNECTED": lambda kernel: kernel[1],
}
#: Why XNNPACK does not run an operator of 8-bit files, and what to change.
_CHANGES = {
    "QUANTIZE": 'QUANTIZE turns uint8 into int8 and back at the ends: pixels="int8" (--int8-pixels) does without',
    "SOFTMAX": "SOFTMAX has no kernel for 8 bits in XNNPACK: classifier_activation=None leaves it to the app",
}
#: Operators and types of activations that LiteRT's GPU delegate supports. Source: `NewOperationParser` and
#: `IsAllAllowedTensors` of `tflite/delegates/gpu/common/model_builder.cc` in LiteRT.
_GPU_OPERATORS = frozenset(
    "ABS ADD ADD_N AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D COS CUMSUM DENSIFY DEPTHWISE_CONV_2D "
    "DEPTH_TO_SPACE DEQUANTIZE DIV ELU EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GELU GREATER "
    "GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN "
    "MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_MAX REDUCE_MIN REDUCE_PROD "
    "RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SIGN "
    "SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TILE "
    "TRANSPOSE TRANSPOSE_CONV UNPACK".split()
)
_GPU_TYPES = {"float32", "float16", "int8", "uint8"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """How a phone runs a file.

    Attributes:
        path: The file.
        operators: Number of operators of each kind.
        partitions: Number of parts of the graph that XNNPACK, LiteRT's library for CPUs, runs. One is best: between two
            parts, LiteRT's plain kernels run.
        outside: Number of operators of each kind that XNNPACK leaves to the plain kernels; empty if it runs all.
        outside_gpu: Number of operators of each kind that the GPU delegate does not support, because of their kind or
            of the type of their activations; empty if it supports all.
        changes: What to change so that XNNPACK runs all operators, as far as that is known.
        macs: Multiply-accumulates of convolutions and dense layers for one image.
        weights: Size of all constants, in bytes.
        arena: Size of the memory in which LiteRT's planner places the activations for one image, in bytes. Kernels may
            need scratch memory besides.
        moved: Bytes that all operators together read and write for one image, including weights.
    """

    path: Path
    operators: Mapping[str, int]
    partitions: int
    outside: Mapping[str, int]
    outside_gpu: Mapping[str, int]
    changes: tuple[str, ...]
    macs: int
    weights: int
    arena: int
    moved: int

    def __str__(self) -> str:
        partitions = f"{self.partitions} partition{'s' * (self.partitions != 1)}"
        return "\n".join(
            [
                f"{self.path.name}: {_counted(self.operators)}",
                f"  CPU (XNNPACK)  {partitions}, {_told(self.outside)}",
                *(f"  to change      {change}" for change in self.changes),
                f"  GPU delegate   {_told(self.outside_gpu)}",
                f"  one image      {self.macs / 1e6:,.2f} million MACs; {_megabytes(self.weights)} of weights, "
                f"{_megabytes(self.arena)} of activations, {_megabytes(self.moved)} moved",
            ]
        )


def device_report(path: str | Path) -> DeviceReport:
    """Reports how a phone would run a `.tflite`, without running it.

    XNNPACK partitions the graph here as it does on a phone. The GPU delegate is not used. What it supports is looked up
    in a table from its source, which does not consider shapes. NPUs are not part of the report, because only their
    makers provide compilers.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If it is not a TFLite model, or if its SHA-256 differs from that in `{path}.json`.
    """
    from ai_edge_litert.interpreter import OpResolverType

    path = Path(path)
    check_digests(path)
    delegated = _open(path, OpResolverType.AUTO)
    # Unlike the optimised ones, the reference kernels put no scratch memory among the activations.
    plain = _open(path, OpResolverType.BUILTIN_REF)
    nodes = plain._get_ops_details()
    tensors = {tensor["index"]: tensor for tensor in plain.get_tensor_details()}
    partitions = [node for node in delegated._get_ops_details() if node["op_name"] == "DELEGATE"]
    inside = set().union(*(_made_inside(partition, nodes) for partition in partitions))
    outside = [node for node in nodes if not inside.intersection(node["outputs"])]
    made = {index for node in nodes for index in node["outputs"]}
    made |= {tensor["index"] for tensor in plain.get_input_details()}
    constants = {index for node in nodes for index in _reads(node)} - made
    # Operators that read only constants, such as a cast of weights, run once and not for each image.
    working = [node for node in nodes if not constants.issuperset(_reads(node))]
    activations = {tensor["index"] for tensor in plain.get_input_details()}
    activations |= {index for node in working for index in node["outputs"]}
    used = [index for node in working for index in [*_reads(node), *node["outputs"]]]
    kinds = {tensors[index]["dtype"].__name__ for index in activations}
    return DeviceReport(
        path=path,
        operators=_kinds(nodes),
        partitions=len(partitions),
        outside=_kinds(outside),
        outside_gpu=_kinds([node for node in working if not _on_gpu(node, activations, tensors)]),
        changes=_changes({node["op_name"] for node in outside}, kinds),
        macs=sum(_macs(node, tensors) for node in nodes),
        weights=sum(_bytes(tensors[index]) for index in constants),
        arena=_arena(plain, activations),
        moved=sum(_bytes(tensors[index]) for index in used),
    )


def _open(path: Path, resolver: Any) -> Interpreter:
    try:
        return open_interpreter(path, 1, resolver)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a TFLite model, or it is damaged: {error}") from error


def _reads(node: Node) -> list[int]:
    """Returns the tensors that an operator reads; a negative index stands for none."""
    return [index for index in node["inputs"] if index >= 0]


def _made_inside(partition: Node, nodes: Sequence[Node]) -> set[int]:
    """Returns the outputs of all operators between a partition's inputs and outputs."""
    makers = {output: node for node in nodes for output in node["outputs"]}
    found, waiting = set(), list(partition["outputs"])
    while waiting:
        index = waiting.pop()
        if index in makers and index not in found and index not in partition["inputs"]:
            found.add(index)
            waiting += _reads(makers[index])
    return found


def _macs(node: Node, tensors: Mapping[int, Mapping[str, Any]]) -> int:
    count = _MULTIPLICATIONS.get(node["op_name"])
    if count is None:
        return 0
    kernel, outputs = (tensors[index]["shape"].tolist() for index in (node["inputs"][1], node["outputs"][0]))
    return math.prod(outputs) * count(kernel)


def _bytes(tensor: Mapping[str, Any]) -> int:
    import numpy as np

    return math.prod(tensor["shape"].tolist()) * np.dtype(tensor["dtype"]).itemsize


def _arena(interpreter: Interpreter, activations: set[int]) -> int:
    """Returns how far apart the first and the last byte of all activations lie in memory."""
    views = [interpreter.tensor(index)() for index in activations]
    return max(view.ctypes.data + view.nbytes for view in views) - min(view.ctypes.data for view in views)


def _on_gpu(node: Node, activations: set[int], tensors: Mapping[int, Mapping[str, Any]]) -> bool:
    types = {
        tensors[index]["dtype"].__name__ for index in activations.intersection([*node["inputs"], *node["outputs"]])
    }
    return node["op_name"] in _GPU_OPERATORS and types <= _GPU_TYPES


def _changes(outside: set[str], kinds: set[str]) -> tuple[str, ...]:
    if outside and "int16" in kinds:
        return ("XNNPACK has no kernels for int16: export it as tflite_int8, or as tflite",)
    return tuple(_CHANGES[name] for name in sorted(outside & _CHANGES.keys())) if "int8" in kinds else ()


def _kinds(nodes: Sequence[Node]) -> dict[str, int]:
    return dict(sorted(collections.Counter(node["op_name"] for node in nodes).items()))


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _told(outside: Mapping[str, int]) -> str:
    return f"outside: {_counted(outside)}" if outside else "all operators inside"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
