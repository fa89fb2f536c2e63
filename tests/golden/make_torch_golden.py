"""Records what timm's and torchvision's networks compute, for the tests to match.

Writes four files beside this one:

* `torch_logits.npz`: `<variant>/<size>` holds the logits, (1000,).
* `torch_features.npz`: `<variant>/<reduction>` holds the means over space of the
  feature map whose stride is `reduction`, (channels,), and
  `<variant>/<reduction>/shape` its (height, width, channels) at size 224.
* `torch_parameters.json.gz`: `{variant: {"peers", "trainable", "tensors"}}`: the
  libraries that agree, the count of trainable parameters, and the name and
  shape of every tensor in the order of the state dict.

* `imagenet_categories.txt`: torchvision's names of the 1000 classes.

A variant `<name>@<stride>` is the network dilated to that output stride. Weights
and images follow `rule.py`. To make the files anew:

    pip install numpy==2.4.6 torch==2.14.1 torchvision==0.29.1 timm==1.0.31
    python tests/golden/make_torch_golden.py
"""

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import rule
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.densenet import DenseNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

Peers = dict[str, Callable[[], nn.Module]]

SIZES = (224, 161)  # the odd size tells apart ways to pad and to round


def in_timm(name: str, **options: int) -> Peers:
    return {"timm": partial(timm.create_model, name, **options)}


def in_both(name: str) -> Peers:
    return in_timm(name) | {"torchvision": partial(torchvision.models.get_model, name)}


# Neither library registers DenseNet-264 or a ResNetV2-200 with batch norms.
DENSENET264 = {"growth_rate": 32, "block_config": (6, 12, 64, 48)}
RESNET200V2 = {"layers": (3, 24, 36, 3), "channels": (256, 512, 1024, 2048)}
BATCH_NORM = {"conv_layer": create_conv2d, "norm_layer": BatchNormAct2d}

VARIANTS: dict[str, Peers] = {
    **{f"resnet{n}": in_both(f"resnet{n}") for n in (18, 34, 50, 101, 152)},
    "resnet200": in_timm("resnet200"),
    **{f"resnet{n}d": in_timm(f"resnet{n}d") for n in (18, 34, 50, 101, 152, 200)},
    **{f"resnext{n}": in_both(f"resnext{n}") for n in ("50_32x4d", "101_32x8d", "101_64x4d")},
    **{f"wideresnet{n}_2": in_both(f"wide_resnet{n}_2") for n in (50, 101)},
    **{f"seresnet{n}": in_timm(f"seresnet{n}") for n in (18, 34, 50, 101, 152)},
    **{f"resnet{n}v2": in_timm(f"resnetv2_{n}") for n in (18, 34, 50, 101, 152)},
    "resnet200v2": {"timm": partial(ResNetV2, **RESNET200V2, **BATCH_NORM)},
    **{f"densenet{n}": in_both(f"densenet{n}") for n in (121, 161, 169, 201)},
    "densenet264": {
        "timm": partial(DenseNet, **DENSENET264),
        "torchvision": partial(torchvision.models.DenseNet, num_init_features=64, **DENSENET264),
    },
    "resnet18@8": in_timm("resnet18", output_stride=8),
    "resnet50@8": in_timm("resnet50", output_stride=8),
    "resnet50@16": in_timm("resnet50", output_stride=16),
    "resnet50d@16": in_timm("resnet50d", output_stride=16),
    "resnet50v2@8": in_timm("resnetv2_50", output_stride=8),
}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Maps each tensor's name to its shape, without the batch norms' step counts."""
    state = network.state_dict().items()
    return {k: tuple(v.shape) for k, v in state if not k.endswith("num_batches_tracked")}


def fill(network: nn.Module) -> nn.Module:
    """Sets a network's weights by the rule and puts it in evaluation mode."""
    arrays = {k: torch.from_numpy(rule.array(k, shape)) for k, shape in shapes(network).items()}
    network.load_state_dict(arrays, strict=False)  # the step counts stay as they are
    return network.eval()


def image(size: int) -> torch.Tensor:
    return torch.from_numpy(rule.image(size)).permute(0, 3, 1, 2).contiguous()


def features(network: nn.Module) -> dict[str, np.ndarray]:
    """Summarises the maps that `features_only=True` gives, by reduction."""
    maps = network.forward_intermediates(image(SIZES[0]), intermediates_only=True)
    summary = {}
    for level, (found,) in zip(network.feature_info, maps, strict=True):
        channels, height, width = found.shape
        reduction = level["reduction"]
        summary[f"{reduction}"] = found.mean((1, 2)).numpy()
        summary[f"{reduction}/shape"] = np.array([height, width, channels])
    return summary


@torch.inference_mode()
def main() -> None:
    logits, maps, parameters = {}, {}, {}
    for variant, peers in VARIANTS.items():
        network, *others = (fill(build()) for build in peers.values())
        listing = list(shapes(network).items())
        assert all(list(shapes(other).items()) == listing for other in others), variant
        for size in SIZES:
            output = network(image(size))[0]
            assert 1e-2 < output.std() < 1e4, f"{variant}: the rule's scales do not suit it"
            for other in others:
                error = (other(image(size))[0] - output).abs().max()
                assert error <= 1e-5 * output.abs().max(), f"{variant}: peers differ by {error}"
            logits[f"{variant}/{size}"] = output.numpy()
        if "@" not in variant:  # under dilation several levels share a reduction
            maps |= {f"{variant}/{key}": value for key, value in features(network).items()}
        trainable = sum(p.numel() for p in network.parameters())
        parameters[variant] = {"peers": list(peers), "trainable": trainable, "tensors": listing}
        print(f"{variant:18} {trainable:>11,} {output.std():9.3g}  {', '.join(peers)}", flush=True)

    here = Path(__file__).parent
    np.savez_compressed(here / "torch_logits.npz", **logits)
    np.savez_compressed(here / "torch_features.npz", **maps)
    packed = gzip.compress(json.dumps(parameters).encode(), mtime=0)
    (here / "torch_parameters.json.gz").write_bytes(packed)
    categories = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    (here / "imagenet_categories.txt").write_text("\n".join(categories) + "\n")


if __name__ == "__main__":
    main()
