"""Maps our variables to the tensors in other packages' files, with a rule for each layout and family.

A rule takes the place of a layer and returns the name of that layer in the file, or None if the file has no such layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import keras

from keras_resdense.graph import Place, place_of, placed_layers

#: Added to the variance by all batch norms of keras.applications.
KERAS_EPSILON = 1.001e-5

Rule = Callable[[Place], str | None]


def _torch_resnet(place: Place) -> str | None:
    block = f"layer{place.stage - 1}.{place.index - 1}"
    match place.kind, place.role:
        case "stem", ("conv" | "bn") as role:
            return f"{role}{place.number}"
        case "block", ("conv" | "bn") as role:
            return f"{block}.{role}{place.number}"
        case "block", "shortcut_conv":
            return f"{block}.downsample.0"
        case "block", "shortcut_bn":
            return f"{block}.downsample.1"
        case "block", "se_reduce":
            return f"{block}.se.fc1"
        case "block", "se_expand":
            return f"{block}.se.fc2"
        case "head", "predictions":
            return "fc"
    return None


def _torch_resnet_d(place: Place) -> str | None:
    block = f"layer{place.stage - 1}.{place.index - 1}"
    match place.kind, place.role:
        case "stem", "bn" if place.number == 3:
            return "bn1"
        case "stem", ("conv" | "bn") as role:  # conv1 is a sequence of convolution, norm, ReLU, convolution, …
            return f"conv1.{3 * (place.number - 1) + (role == 'bn')}"
        case "block", "shortcut_conv":  # The pooling before it is number 0.
            return f"{block}.downsample.1"
        case "block", "shortcut_bn":
            return f"{block}.downsample.2"
    return _torch_resnet(place)


def _torch_resnet_v2(place: Place) -> str | None:
    block = f"stages.{place.stage - 2}.blocks.{place.index - 1}"
    match place.kind, place.role:
        case "stem", "conv":
            return "stem.conv"
        case "block", "conv":
            return f"{block}.conv{place.number}"
        case "block", "bn":
            return f"{block}.norm{place.number}"
        case "block", "shortcut_conv":
            return f"{block}.downsample.conv"
        case "final", "bn":
            return "norm"
        case "head", "predictions":
            return "head.fc"
    return None


def _torch_densenet(place: Place) -> str | None:
    peer_role = {"conv": "conv", "bn": "norm"}.get(place.role)
    match place.kind, place.role:
        case "stem", "conv" | "bn":
            return f"features.{peer_role}0"
        case "layer", "conv" | "bn":
            return f"features.denseblock{place.stage - 1}.denselayer{place.index}.{peer_role}{place.number}"
        case "transition", "conv" | "bn":
            return f"features.transition{place.stage - 1}.{peer_role}"
        case "final", "bn":
            return "features.norm5"
        case "head", "predictions":
            return "classifier"
    return None


def _keras_resnet(place: Place) -> str | None:
    block = f"conv{place.stage}_block{place.index}"
    match place.kind, place.role:
        case "stem", ("conv" | "bn") as role:
            return f"conv1_{role}"
        case "block", ("conv" | "bn") as role:
            return f"{block}_{place.number}_{role}"
        case "block", "shortcut_conv" | "shortcut_bn":
            return f"{block}_0_{place.role.removeprefix('shortcut_')}"
        case "head", "predictions":
            return "predictions"
    return None


def _keras_resnet_v2(place: Place) -> str | None:
    block = f"conv{place.stage}_block{place.index}"
    match place.kind, place.role:
        case "block", "bn":
            return f"{block}_preact_bn" if place.number == 1 else f"{block}_{place.number - 1}_bn"
        case "final", "bn":
            return "post_bn"
    return _keras_resnet(place)


def _keras_densenet(place: Place) -> str | None:
    layer = f"conv{place.stage}_block{place.index}"
    match place.kind, place.role:
        case "stem", ("conv" | "bn") as role:
            return f"conv1_{role}"
        case "layer", "conv":
            return f"{layer}_{place.number}_conv"
        case "layer", "bn":
            return f"{layer}_{place.number - 1}_bn"
        case "transition", ("conv" | "bn") as role:
            return f"pool{place.stage}_{role}"
        case "final", "bn":
            return "bn"
        case "head", "predictions":
            return "predictions"
    return None


#: The rules by layout of the file and family of the network. "own" files have our names.
LAYOUTS: dict[str, dict[str, Rule]] = {
    "torch": {
        "resnet": _torch_resnet,
        "resnet_d": _torch_resnet_d,
        "resnet_v2": _torch_resnet_v2,
        "densenet": _torch_densenet,
    },
    "keras": {"resnet": _keras_resnet, "resnet_v2": _keras_resnet_v2, "densenet": _keras_densenet},
    "own": {},
}
_TORCH_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def own_variables(model: keras.Model, prefix: str = "") -> dict[str, keras.Variable]:
    """Lists a network's variables as `"layer/variable"`, without the prefix.

    Args:
        model: A model of this package.
        prefix: The `layer_prefix` it was built with.
    """
    return {
        f"{layer.name.removeprefix(prefix)}/{variable.name}": variable
        for _, layer in placed_layers(model, prefix)
        for variable in layer.weights
    }


def peer_names(model: keras.Model, layout: str, prefix: str = "") -> dict[str, str]:
    """Maps our variables to a peer's tensors.

    Args:
        model: A model of this package.
        layout: "torch" for timm and torchvision, "keras" for keras.applications, "own" for this package.
        prefix: The `layer_prefix` the model was built with.

    Returns:
        The peer's name for each `"layer/variable"` (without the prefix), such as `"layer1.0.conv1.weight"` for torch
        or `"conv2_block1_1_conv/kernel"` for keras.

    Raises:
        ValueError: If the layout has no network of the model's family.
    """
    variables = own_variables(model, prefix)
    name_of = _translation(layout, variables)
    names = {name: name_of(name) for name in variables}
    for name, peer in names.items():
        if peer is None:
            raise ValueError(f"No network in {layout} files has a layer such as {name.partition('/')[0]!r}.")
    return names


def peer_head(model: keras.Model, layout: str, prefix: str = "") -> set[str]:
    """Returns a peer's names for a classifier's tensors, whether or not the model has one."""
    name_of = _translation(layout, own_variables(model, prefix))
    return {name_of("predictions/kernel"), name_of("predictions/bias")}


def _translation(layout: str, names: Collection[str]) -> Callable[[str], str | None]:
    """Returns a function from `"layer/variable"` to the layout's name, for the family that has these variables."""
    rule = LAYOUTS[layout].get(_family(names), lambda place: None)

    def translate(name: str) -> str | None:
        layer, variable = name.split("/")
        peer = rule(place_of(layer, ""))
        if peer is None or layout != "torch":
            return peer and f"{peer}/{variable}"
        return f"{peer}.{_TORCH_VARIABLES[variable]}"

    return translate if layout != "own" else str


def _family(names: Collection[str]) -> str:
    if any("_transition_" in name for name in names):
        return "densenet"
    if "final_bn/gamma" in names:
        return "resnet_v2"
    return "resnet_d" if "stem_conv3/kernel" in names else "resnet"
