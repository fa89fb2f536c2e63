"""Records what a PyTorch module computes with which many tutorials explain DenseNet, for the tests to match.

The module is a stem, one block of six layers and a transition, written from the paper (1608.06993) as its PyTorch
translations write it: layers read 64, 96, … 224 channels. Weights and image follow `rule.py`. Writes
`post_densenet.json`: the count of parameters, name and shape of every tensor, and the output, channels last:

    pip install numpy==2.4.6 torch==2.14.1
    python tests/golden/make_post_golden.py
"""

import json
from collections import OrderedDict
from pathlib import Path

import rule
import torch
from torch import nn

SIDE = 16
GROWTH_RATE = 32
CHANNELS = range(64, 225, GROWTH_RATE)


class DenseLayer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * GROWTH_RATE, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * GROWTH_RATE)
        self.conv2 = nn.Conv2d(4 * GROWTH_RATE, GROWTH_RATE, 3, padding=1, bias=False)

    def forward(self, x):
        narrow = self.conv1(self.norm1(x).relu())
        return torch.cat([x, self.conv2(self.norm2(narrow).relu())], 1)


def module() -> nn.Module:
    """Builds the module, its tensors named as in torchvision."""
    stem = [
        ("conv0", nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)),
        ("norm0", nn.BatchNorm2d(64)),
        ("relu0", nn.ReLU()),
        ("pool0", nn.MaxPool2d(3, stride=2, padding=1)),
    ]
    layers = [(f"denselayer{i}", DenseLayer(channels)) for i, channels in enumerate(CHANNELS, start=1)]
    transition = [
        ("norm", nn.BatchNorm2d(256)),
        ("relu", nn.ReLU()),
        ("conv", nn.Conv2d(256, 128, 1, bias=False)),
        ("pool", nn.AvgPool2d(2)),
    ]
    block = [("denseblock1", nn.Sequential(OrderedDict(layers)))]
    end = [("transition1", nn.Sequential(OrderedDict(transition)))]
    features = nn.Sequential(OrderedDict(stem + block + end))
    return nn.Sequential(OrderedDict(features=features))


@torch.inference_mode()
def main() -> None:
    network = module()
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    network.load_state_dict({k: torch.from_numpy(rule.array(k, s)) for k, s in shapes.items()}, strict=False)
    image = torch.from_numpy(rule.image(SIDE)).permute(0, 3, 1, 2)
    found = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tensors": list(shapes.items()),
        "output": network.eval()(image).permute(0, 2, 3, 1).tolist(),
    }
    (Path(__file__).parent / "post_densenet.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
