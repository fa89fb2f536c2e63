"""Files of weights into arrays: what is damaged, points to other files or holds no floats is refused."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from keras_resdense.graph import placed_layers
from keras_resdense.pretrained.layouts import own_variables

#: The layout of a file, as `peer_names` takes it, and its tensors by their names there.
Tensors = tuple[str, dict[str, np.ndarray]]
FLOATS = ("float16", "bfloat16", "float32", "float64")
#: In files of Keras 3, what is not a float by right: states of dropout and of optimizers.
_OTHER_STATE = re.compile(r"/optimizer/|seed_generator")


def fault_of(name: str, tensor: np.ndarray) -> str | None:
    """Says what is wrong with the numbers of a tensor; None where nothing is.

    Args:
        name: Name of the tensor, which tells whether it is a variance.
        tensor: Any array.
    """
    if tensor.dtype.name not in FLOATS:
        return f"{name} holds {tensor.dtype.name}, no floats"
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
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"Reading {path} needs torch: pip install torch, or convert it to .safetensors.") from error
    # Nothing but tensors is unpickled: a file that wants to run code is refused.
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state.get("model", state))
    arrays = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return "torch", _current_names({name.removeprefix("module."): tensor.numpy() for name, tensor in arrays.items()})


def _current_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames what torchvision's first DenseNet files call `norm.1.weight` as its code does today."""
    return {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", name): tensor for name, tensor in tensors.items()}


def _read_keras_applications(path: Path) -> Tensors:
    import h5py

    with h5py.File(path) as file:
        _check_contained(file)
        layers = file["model_weights"] if "model_weights" in file else file
        return "keras", {
            f"{layer}/{name.rsplit('/', 1)[-1].split(':')[0]}": np.asarray(group[name])
            for layer, group in layers.items()
            for name in np.asarray(group.attrs.get("weight_names", ()), dtype=str)
        }


def _read_keras(path: Path) -> Tensors:
    with zipfile.ZipFile(path) as archive:
        check_keras_weights(io.BytesIO(archive.read("model.weights.h5")))
    saved = keras.saving.load_model(path, compile=False)
    stems = [
        layer.name.removesuffix("stem_conv1")
        for place, layer in placed_layers(saved)
        if layer.name.endswith("stem_conv1")
    ]
    if stems:
        return "own", {name: np.asarray(variable) for name, variable in own_variables(saved, stems[0]).items()}
    return "keras", {f"{layer.name}/{v.name}": np.asarray(v) for layer in saved.layers for v in layer.weights}


def check_keras_weights(file: Path | io.BytesIO) -> None:
    """Raises a ValueError unless the weights of a `.weights.h5` file are floats that stand in the file itself."""
    import h5py

    def check(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not _OTHER_STATE.search(f"/{name}"):
            kind = item.attrs.get("dtype", item.dtype.name)
            if kind not in FLOATS:
                raise ValueError(f"{name} holds {kind}, no floats")

    with h5py.File(file) as opened:
        _check_contained(opened)
        opened.visititems(check)


def _check_contained(group) -> None:
    """Raises a ValueError where a file of HDF5 takes contents from other files, as Keras does."""
    import h5py

    for name in group:
        item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            _check_contained(item)
        elif item is None or item.external or item.is_virtual:
            raise ValueError(f"{group.name.rstrip('/')}/{name} is a link or stands in another file")


#: Of each kind of file, what reads it.
READERS: dict[str, Callable[[Path], Tensors]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".h5": _read_keras_applications,
    ".keras": _read_keras,
}
