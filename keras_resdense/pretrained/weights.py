"""Loads weights from files of this package and of others.

All tensors are matched and checked before the first variable changes: names, shapes, that they are finite floats, and
that no variance is negative. Only a hash detects flipped bits that leave valid numbers: pass `"file#sha256=…"`.

* timm and torchvision: `.safetensors`, `.pth`, `.pt`, `.bin`.
* keras.applications: `.h5`, `.keras` and `.weights.h5`. Our convolutions have no bias before a batch norm, so such a
  bias is subtracted from the moving mean. A difference from its epsilon of 1.001e-5 is added to the moving variance.
* This package: `.keras`, `.weights.h5`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from keras_resdense.files import check_digests, sha256
from keras_resdense.graph import placed_layers
from keras_resdense.pretrained.layouts import KERAS_EPSILON, own_variables, peer_head, peer_names
from keras_resdense.pretrained.readers import READERS, fault_of


def checked(weights: str | Path) -> tuple[Path, str]:
    """Returns path and SHA-256 of `"path"` or `"path#sha256=…"`, after comparing it with the given or recorded one.

    Args:
        weights: The path of a file and, optionally, the SHA-256 that it must have, in 64 hexadecimal digits.

    Raises:
        ValueError: If the file has another SHA-256, or the given one is not a SHA-256.
        OSError: If there is no such file.
    """
    name, separator, expected = str(weights).partition("#sha256=")
    path = Path(name)
    if separator and not re.fullmatch("[0-9a-fA-F]{64}", expected):
        raise ValueError(f"{weights}: {expected!r} is not a SHA-256, which has 64 hexadecimal digits.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    found = sha256(path)
    if separator and found != expected.lower():
        raise ValueError(f"{path} has the SHA-256 {found}, not {expected}: it is damaged or another file.")
    if not separator:
        check_digests(path, {path.name: found})
    return path, found


def load(model: keras.Model, path: str | Path, prefix: str = "") -> None:
    """Loads a file of weights into a model, all of it or nothing.

    Args:
        model: A model of this package.
        path: `.safetensors`, `.pth`, `.pt` or `.bin` of timm or torchvision; `.h5`, `.keras` or `.weights.h5` of
            keras.applications; `.keras` or `.weights.h5` of this package. `"path#sha256=…"` checks its contents.
        prefix: The `layer_prefix` the model was built with.

    Raises:
        ValueError: If the file is damaged, of an unknown kind, or does not fit, or if a weight is not a finite float.
            The model is unchanged then.
        OSError: If there is no such file.
    """
    load_checked(model, checked(path)[0], prefix)


def load_checked(model: keras.Model, path: Path, prefix: str = "") -> None:
    """Loads a file of weights as `load` does, without comparing its SHA-256."""
    kind = next((suffix for suffix in READERS if path.name.endswith(suffix)), None)
    if kind is None:
        raise ValueError(f"{path} is of an unknown kind: it must be one of {', '.join(READERS)}.")
    try:
        layout, tensors = READERS[kind](path)
    except Exception as error:  # every format's library has exceptions of its own for damage
        raise ValueError(f"{path} cannot be read: {error}") from error
    assign(model, tensors, layout, prefix)


def _raise_faults(model: keras.Model, faults: list[str]) -> None:
    if faults:
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"The weights do not fit {model.name}:\n  " + "\n  ".join(faults[:5]) + more)


def assign(model: keras.Model, tensors: Mapping[str, np.ndarray], layout: str, prefix: str = "") -> None:
    """Sets a model's variables from a peer's tensors: all of them, or none.

    A head for another number of classes is left as it is, with a warning. A first convolution for RGB is adapted
    to other channels, see `adapt_channels`.

    Args:
        model: A model of this package.
        tensors: Tensors with the names and shapes of the peer.
        layout: See `peer_names`.
        prefix: The `layer_prefix` the model was built with.

    Raises:
        ValueError: If tensors are missing, left over, of another shape or not finite floats. The model is unchanged
            then.
    """
    variables, names = own_variables(model, prefix), peer_names(model, layout, prefix)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    faults = [fault for name, tensor in tensors.items() if (fault := fault_of(name, tensor))]
    if layout == "keras":
        tensors = _without_biases(tensors, names)
    epsilons = {
        layer.name.removeprefix(prefix): layer.epsilon
        for _, layer in placed_layers(model, prefix)
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    left_over = tensors.keys() - names.values() - peer_head(model, layout, prefix)
    faults += [f"{name} {tensors[name].shape} is left over" for name in sorted(left_over)]
    values = {}
    for name, variable in variables.items():
        peer = names[name]
        if peer not in tensors:
            faults.append(f"{peer} is missing, for {name} {tuple(variable.shape)}")
            continue
        value = _to_keras(tensors[peer], variable) if layout == "torch" else np.asarray(tensors[peer])
        if name == "stem_conv1/kernel" and value.ndim == 4 and value.shape[2] == 3:
            value = adapt_channels(value, variable.shape[2])
        if layout == "keras" and variable.name == "moving_variance":
            value = value + (KERAS_EPSILON - epsilons[name.split("/")[0]])
        if value.shape == tuple(variable.shape):
            values[name] = value
        elif not _other_head(name, value.shape, variable.shape):
            faults.append(f"{peer} is {value.shape}, {name} needs {tuple(variable.shape)}")
    _raise_faults(model, faults)
    if len(values) < len(variables):
        warnings.warn(
            "The weights' head has another number of classes. It is not loaded, so the model's head is untrained.",
            stacklevel=2,
        )
    for name, value in values.items():
        variables[name].assign(value)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts the kernel of a first convolution from RGB to other channels, as timm's `adapt_input_conv` does.

    Args:
        kernel: `(height, width, 3, filters)`.
        channels: Number of channels. 1 takes the sum over RGB, so a grey image gives the same result as its RGB copy.
            More than 3 repeat the three and scale them by `3 / channels`.

    Returns:
        `(height, width, channels, filters)`.
    """
    if channels == 3:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return np.tile(kernel, (1, 1, math.ceil(channels / 3), 1))[:, :, :channels] * (3 / channels)


def _other_head(name: str, found: tuple[int, ...], needed: tuple[int, ...]) -> bool:
    return name.startswith("predictions/") and found[:-1] == tuple(needed[:-1])


def _to_keras(tensor: np.ndarray, variable: keras.Variable) -> np.ndarray:
    if variable.name != "kernel":
        return tensor
    if len(variable.shape) == 4:
        return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    return tensor.reshape(tensor.shape[:2]).T if tensor.ndim in (2, 4) else tensor


def _without_biases(tensors: dict[str, np.ndarray], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Subtracts biases that our convolutions lack from the moving means of the next batch norm."""
    wanted = set(names.values())
    for name in [name for name in tensors if name.endswith("_conv/bias") and name not in wanted]:
        mean = name.replace("_conv/bias", "_bn/moving_mean")
        if mean in tensors:
            tensors[mean] = tensors[mean] - tensors.pop(name)
    return tensors
