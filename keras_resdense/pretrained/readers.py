"""Reads files of weights into arrays. Damaged files, links to other files and other types than floats are refused."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from keras_resdense.checks import require_packages
from keras_resdense.graph import place_of

if TYPE_CHECKING:
    import h5py

#: The layout of a file, see `peer_names`, and its tensors by name.
Tensors = tuple[str, dict[str, np.ndarray]]
FLOATS = ("float16", "bfloat16", "float32", "float64")
#: Names of a layer's variables by how many there are, in the order that Keras 3 numbers them in files.
_VARIABLES = {
    1: ("kernel",),
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
#: The first variable of every network of this package.
_FIRST_KERNEL = "stem_conv1/kernel"


def fault_of(name: str, tensor: np.ndarray) -> str | None:
    """Describes what is wrong with the numbers of a tensor; returns None if nothing is.

    Args:
        name: Name of the tensor, which shows whether it is a variance.
        tensor: Any array.
    """
    if tensor.dtype.name not in FLOATS:
        return f"{name} holds {tensor.dtype.name}, not floats"
    with np.errstate(over="ignore"):
        finite = np.isfinite(tensor.astype("float32"))
    if not finite.all():
        return f"{name} holds {tensor[~finite].flat[0]}: not finite in float32"
    if name.endswith(("moving_variance", "running_var")) and (tensor < 0).any():
        return f"{name} holds the variance {tensor.min()}, which is negative"
    return None


def _read_safetensors(path: Path) -> Tensors:
    from safetensors.numpy import load_file

    return "torch", _current_names(load_file(path))


def _read_torch(path: Path) -> Tensors:
    require_packages("it", ["torch"])
    import torch

    # Only tensors are unpickled, so a file that contains code is refused.
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state.get("model", state))
    arrays = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return "torch", _current_names({name.removeprefix("module."): tensor.numpy() for name, tensor in arrays.items()})


def _current_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames `norm.1.weight` of torchvision's first DenseNet files to `norm1.weight`, as in its current code."""
    return {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", name): tensor for name, tensor in tensors.items()}


def _read_keras_applications(path: Path) -> Tensors:
    with _opened_h5(path) as file:
        layers = file["model_weights"] if "model_weights" in file else file
        return "keras", {
            f"{layer}/{name.rsplit('/', 1)[-1].split(':')[0]}": np.asarray(group[name])
            for layer, group in layers.items()
            for name in np.asarray(group.attrs.get("weight_names", ()), dtype=str)
        }


def _read_keras(path: Path) -> Tensors:
    with zipfile.ZipFile(path) as archive:
        return _read_keras_weights(io.BytesIO(archive.read("model.weights.h5")))


def _read_keras_weights(file: Path | io.BytesIO) -> Tensors:
    """Reads a file of Keras 3, which numbers layers by class and stores the name of each beside its variables."""
    tensors: dict[str, np.ndarray] = {}

    def take(path: str, group: h5py.Group | h5py.Dataset) -> None:
        if not path.endswith("/vars") or not (names := _VARIABLES.get(len(group))) or path.startswith("optimizer/"):
            return
        if (layer := group.attrs.get("name")) is None:
            raise ValueError("it does not name its layers; save it again with Keras 3.9 or newer")
        for variable, number in zip(names, sorted(group, key=int), strict=True):
            if f"{layer}/{variable}" in tensors:
                raise ValueError(f"it holds two layers called {layer}")
            # NumPy and HDF5 have no bfloat16 type.
            kind = group[number].attrs.get("dtype")
            values = group[number][()]
            tensors[f"{layer}/{variable}"] = values.view(ml_dtypes.bfloat16) if kind == "bfloat16" else values

    with _opened_h5(file) as opened:
        opened.visititems(take)
    prefix = next((name.removesuffix(_FIRST_KERNEL) for name in tensors if name.endswith(_FIRST_KERNEL)), None)
    if prefix is None:
        return "keras", tensors
    # The model may have other layers before and after the network.
    own = {name: tensor for name, tensor in tensors.items() if place_of(name.partition("/")[0], prefix)}
    return "own", {name.removeprefix(prefix): tensor for name, tensor in own.items()}


@contextlib.contextmanager
def _opened_h5(file: Path | io.BytesIO) -> Iterator[h5py.File]:
    """Opens an HDF5 file that ends and takes nothing from other files."""
    import h5py

    _check_heaps(file.getbuffer() if isinstance(file, io.BytesIO) else np.memmap(file, mode="r").data)
    with h5py.File(file) as opened:
        _check_contained(opened)
        yield opened


def _check_heaps(content: memoryview) -> None:
    """Raises a ValueError if HDF5 would read a heap of strings forever, as it does where an object has no size.

    HDF5 2.0 and older do. Source: HDF5 File Format Specification 3.0, section III.E, "Global Heap".
    """
    for heap in re.finditer(rb"GCOL\x01", content):
        place, end = heap.start() + 16, len(content)
        if place <= end:
            end = min(end, heap.start() + struct.unpack_from("<Q", content, heap.start() + 8)[0])
        while place + 16 <= end:
            number, length = struct.unpack_from("<H6xQ", content, place)
            # HDF5 adds with 64 bits.
            step = (16 + -(-length // 8) * 8) % 2**64 if number else length
            if not step:
                raise ValueError("a heap of strings has an object without a size")
            place += step


def _check_contained(group) -> None:
    """Raises a ValueError if an HDF5 file refers to other files, as Keras does."""
    import h5py

    for name in group:
        item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            _check_contained(item)
        elif item is None or item.external or item.is_virtual:
            raise ValueError(f"{group.name.rstrip('/')}/{name} is a link or is stored in another file")


#: The reader for each file suffix.
READERS: dict[str, Callable[[Path], Tensors]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".weights.h5": _read_keras_weights,
    ".h5": _read_keras_applications,
    ".keras": _read_keras,
}
