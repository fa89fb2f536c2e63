"""Weights from files: which tensor of which peer belongs to which of our variables.

A peer's names are a table of rules from our layers' names to its own. A file's tensors are all matched
and checked before the first variable changes.

* timm and torchvision: `.safetensors`, `.pth`, `.pt`, `.bin`.
* keras.applications: `.h5`. Biases beside a batch norm, which our convolutions lack, are subtracted from
  its moving mean; its epsilon of 1.001e-5 goes into the moving variance where ours differs.
* This package: `.keras`, `.weights.h5`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np

from keras_resdense.graph import all_layers

Rules = tuple[tuple[str, str], ...]

_TORCH_BLOCK = (
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_(?P<layer>conv\d|bn\d)", "layer{stage-1}.{block-1}.{layer}"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_se_reduce", "layer{stage-1}.{block-1}.se.fc1"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_se_expand", "layer{stage-1}.{block-1}.se.fc2"),
    (r"predictions", "fc"),
)
_TORCH_RESNET = (
    *_TORCH_BLOCK,
    (r"stem_(?P<layer>conv|bn)1", "{layer}1"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_shortcut_conv", "layer{stage-1}.{block-1}.downsample.0"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_shortcut_bn", "layer{stage-1}.{block-1}.downsample.1"),
)
_TORCH_RESNET_D = (
    *_TORCH_BLOCK,
    (r"stem_conv1", "conv1.0"),
    (r"stem_bn1", "conv1.1"),
    (r"stem_conv2", "conv1.3"),
    (r"stem_bn2", "conv1.4"),
    (r"stem_conv3", "conv1.6"),
    (r"stem_bn3", "bn1"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_shortcut_conv", "layer{stage-1}.{block-1}.downsample.1"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_shortcut_bn", "layer{stage-1}.{block-1}.downsample.2"),
)
_TORCH_RESNET_V2 = (
    (r"stem_conv1", "stem.conv"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_conv(?P<i>\d)", "stages.{stage-2}.blocks.{block-1}.conv{i}"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_bn(?P<i>\d)", "stages.{stage-2}.blocks.{block-1}.norm{i}"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_shortcut_conv", "stages.{stage-2}.blocks.{block-1}.downsample.conv"),
    (r"final_bn", "norm"),
    (r"predictions", "head.fc"),
)
_TORCH_DENSENET = (
    (r"stem_conv1", "features.conv0"),
    (r"stem_bn1", "features.norm0"),
    (r"stage(?P<stage>\d)_layer(?P<i>\d+)_conv(?P<j>\d)", "features.denseblock{stage-1}.denselayer{i}.conv{j}"),
    (r"stage(?P<stage>\d)_layer(?P<i>\d+)_bn(?P<j>\d)", "features.denseblock{stage-1}.denselayer{i}.norm{j}"),
    (r"stage(?P<stage>\d)_transition_conv", "features.transition{stage-1}.conv"),
    (r"stage(?P<stage>\d)_transition_bn", "features.transition{stage-1}.norm"),
    (r"final_bn", "features.norm5"),
    (r"predictions", "classifier"),
)
_KERAS_RESNET = (
    (r"stem_(?P<layer>conv|bn)1", "conv1_{layer}"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_(?P<layer>conv|bn)(?P<i>\d)", "conv{stage}_block{block}_{i}_{layer}"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_shortcut_(?P<layer>conv|bn)", "conv{stage}_block{block}_0_{layer}"),
    (r"predictions", "predictions"),
)
_KERAS_RESNET_V2 = (
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_bn1", "conv{stage}_block{block}_preact_bn"),
    (r"stage(?P<stage>\d)_block(?P<block>\d+)_bn(?P<i>\d)", "conv{stage}_block{block}_{i-1}_bn"),
    (r"final_bn", "post_bn"),
    *_KERAS_RESNET,
)
_KERAS_DENSENET = (
    (r"stem_(?P<layer>conv|bn)1", "conv1_{layer}"),
    (r"stage(?P<stage>\d)_layer(?P<i>\d+)_conv(?P<j>\d)", "conv{stage}_block{i}_{j}_conv"),
    (r"stage(?P<stage>\d)_layer(?P<i>\d+)_bn(?P<j>\d)", "conv{stage}_block{i}_{j-1}_bn"),
    (r"stage(?P<stage>\d)_transition_(?P<layer>conv|bn)", "pool{stage}_{layer}"),
    (r"final_bn", "bn"),
    (r"predictions", "predictions"),
)

#: Of each layout, the rules of each family of networks.
LAYOUTS: dict[str, dict[str, Rules]] = {
    "torch": {
        "resnet": _TORCH_RESNET,
        "resnet_d": _TORCH_RESNET_D,
        "resnet_v2": _TORCH_RESNET_V2,
        "densenet": _TORCH_DENSENET,
    },
    "keras": {"resnet": _KERAS_RESNET, "resnet_v2": _KERAS_RESNET_V2, "densenet": _KERAS_DENSENET},
    "own": dict.fromkeys(("resnet", "resnet_d", "resnet_v2", "densenet"), ((r"(?P<layer>.*)", "{layer}"),)),
}
_TORCH_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_KERAS_EPSILON = 1.001e-5


def peer_names(model: keras.Model, layout: str, prefix: str = "") -> dict[str, str]:
    """Maps our variables to a peer's tensors.

    Args:
        model: One of this package's.
        layout: Key of `LAYOUTS`.
        prefix: The `layer_prefix` the model was built with.

    Returns:
        Of each variable, `"layer/variable"` without the prefix, the peer's name of its tensor:
        `"layer1.0.conv1.weight"` for torch, `"conv2_block1_1_conv/kernel"` for keras.

    Raises:
        ValueError: If the layout has no network of the model's family.
    """
    variables = own_variables(model, prefix)
    family = _family(variables)
    rules = LAYOUTS[layout].get(family)
    names = {}
    for name in variables:
        layer, variable = name.split("/")
        peer = _translate(layer, rules or ())
        if peer is None:
            raise ValueError(f"{layout} files hold no network with a layer such as {layer!r}.")
        names[name] = f"{peer}.{_TORCH_VARIABLES[variable]}" if layout == "torch" else f"{peer}/{variable}"
    return names


def own_variables(model: keras.Model, prefix: str = "") -> dict[str, keras.Variable]:
    """Lists a model's variables of convolutions, batch norms and dense layers as `"layer/variable"`."""
    kinds = (keras.layers.Conv2D, keras.layers.BatchNormalization, keras.layers.Dense)
    return {
        f"{layer.name.removeprefix(prefix)}/{variable.name}": variable
        for layer in all_layers(model)
        if isinstance(layer, kinds) and layer.name.startswith(prefix)
        for variable in layer.weights
    }


def _family(names: Mapping[str, object]) -> str:
    if any("_transition_" in name for name in names):
        return "densenet"
    if "final_bn/gamma" in names:
        return "resnet_v2"
    return "resnet_d" if "stem_conv3/kernel" in names else "resnet"


def _translate(layer: str, rules: Rules) -> str | None:
    for pattern, template in rules:
        if match := re.fullmatch(pattern, layer):
            return re.sub(r"\{(\w+)(-\d)?\}", lambda field: _fill(match[field[1]], field[2]), template)
    return None


def _fill(value: str, shift: str | None) -> str:
    return str(int(value) + int(shift)) if shift else value


def load(model: keras.Model, path: str | Path, prefix: str = "") -> None:
    """Loads a file of weights into a model, all of it or nothing.

    Args:
        model: One of this package's.
        path: `.safetensors`, `.pth`, `.pt` or `.bin` of timm or torchvision; `.h5` of keras.applications;
            `.keras` or `.weights.h5` of this package.
        prefix: The `layer_prefix` the model was built with.

    Raises:
        ValueError: If the file is damaged, of no known kind, or does not fit; the model is as it was then.
        OSError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.name.endswith(".weights.h5"):
        _load_keras_3(model, path)
        return
    if path.suffix not in READERS:
        raise ValueError(f"{path} is of no known kind: {', '.join(READERS)} and .weights.h5 are.")
    layout, read = READERS[path.suffix]
    try:
        tensors = read(path)
    except ImportError:
        raise
    except Exception as error:  # every format's library has exceptions of its own for damage
        raise ValueError(f"{path} cannot be read: {error}") from error
    assign(model, tensors, layout, prefix)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return _current_names(load_file(path))


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"Reading {path} needs torch: pip install torch, or convert it to .safetensors.") from error
    # Nothing but tensors is unpickled: a file that wants to run code is refused.
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state.get("model", state))
    return _current_names({name.removeprefix("module."): tensor.float().numpy() for name, tensor in state.items()})


def _current_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames what torchvision's first DenseNet files call `norm.1.weight` as its code does today."""
    return {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", name): tensor for name, tensor in tensors.items()}


def _read_keras_applications(path: Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path) as file:
        layers = file["model_weights"] if "model_weights" in file else file
        return {
            f"{layer}/{name.rsplit('/', 1)[-1].split(':')[0]}": np.asarray(group[name])
            for layer, group in layers.items()
            for name in np.asarray(group.attrs.get("weight_names", ()), dtype=str)
        }


def _read_keras(path: Path) -> dict[str, np.ndarray]:
    saved = keras.saving.load_model(path, compile=False)
    (stem,) = (layer.name for layer in all_layers(saved) if layer.name.endswith("stem_conv1"))
    variables = own_variables(saved, stem.removesuffix("stem_conv1"))
    return {name: np.asarray(variable) for name, variable in variables.items()}


def _load_keras_3(model: keras.Model, path: Path) -> None:
    # The file orders layers by class, not by name: Keras itself reads it, into a copy that may break.
    copy = keras.models.clone_model(model)
    try:
        copy.load_weights(path)
    except Exception as error:  # h5py and Keras raise many classes for damage and misfits
        raise ValueError(f"{path} does not fit {model.name}: {error}") from error
    model.set_weights(copy.get_weights())


#: Of each kind of file, its layout and what reads it.
READERS: dict[str, tuple[str, Callable[[Path], dict[str, np.ndarray]]]] = {
    ".safetensors": ("torch", _read_safetensors),
    ".pth": ("torch", _read_torch),
    ".pt": ("torch", _read_torch),
    ".bin": ("torch", _read_torch),
    ".h5": ("keras", _read_keras_applications),
    ".keras": ("own", _read_keras),
}


def assign(model: keras.Model, tensors: Mapping[str, np.ndarray], layout: str, prefix: str = "") -> None:
    """Sets a model's variables from a peer's tensors: all of them, or none.

    A head for another number of classes stays as it is, with a warning. A first convolution made for RGB
    is adapted to other channels, see `adapt_channels`.

    Args:
        model: One of this package's.
        tensors: By the peer's names, in the peer's shapes.
        layout: Key of `LAYOUTS`.
        prefix: The `layer_prefix` the model was built with.

    Raises:
        ValueError: If tensors are missing, left over or of another shape; the model is as it was then.
    """
    variables, names = own_variables(model, prefix), peer_names(model, layout, prefix)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    if layout == "keras":
        tensors = _without_biases(tensors, names)
    head = _translate("predictions", LAYOUTS[layout][_family(variables)])
    norms = (layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization))
    epsilons = {layer.name.removeprefix(prefix): layer.epsilon for layer in norms}
    left_over = [name for name in tensors.keys() - set(names.values()) if not name.startswith(head)]
    values, faults = {}, [f"{name} {tensors[name].shape} is left over" for name in sorted(left_over)]
    for name, variable in variables.items():
        peer = names[name]
        if peer not in tensors:
            faults.append(f"{peer} is missing, for {name} {tuple(variable.shape)}")
            continue
        value = _to_keras(tensors[peer], variable) if layout == "torch" else np.asarray(tensors[peer])
        if name == "stem_conv1/kernel" and value.ndim == 4 and value.shape[2] == 3:
            value = adapt_channels(value, variable.shape[2])
        if layout == "keras" and variable.name == "moving_variance":
            value = value + (_KERAS_EPSILON - epsilons[name.split("/")[0]])
        if value.shape == tuple(variable.shape):
            values[name] = value
        elif not _other_head(name, value.shape, variable.shape):
            faults.append(f"{peer} is {value.shape}, {name} needs {tuple(variable.shape)}")
    if faults:
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"The weights do not fit {model.name}:\n  " + "\n  ".join(faults[:5]) + more)
    if len(values) < len(variables):
        warnings.warn(
            "The weights' head has another number of classes: it is left out, the new one is untrained.",
            stacklevel=2,
        )
    for name, value in values.items():
        variables[name].assign(value)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts the kernel of a first convolution from RGB to other channels, as timm's `adapt_input_conv` does.

    Args:
        kernel: `(height, width, 3, filters)`.
        channels: Wanted. 1 takes the sum over RGB, so that a grey image gives what its RGB replica gave;
            more repeat the three and scale them by `3 / channels`.

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
    """Moves the biases that our convolutions lack into the moving means behind them."""
    wanted = set(names.values())
    for name in [name for name in tensors if name.endswith("_conv/bias") and name not in wanted]:
        mean = name.replace("_conv/bias", "_bn/moving_mean")
        if mean in tensors:
            tensors[mean] = tensors[mean] - tensors.pop(name)
    return tensors
