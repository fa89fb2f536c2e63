"""Writes torchvision's networks, with random weights, as ONNX files for runs.py.

    python benchmarks/make_torch_onnx.py FOLDER

Needs torch, torchvision, onnx and onnxscript, and nothing of this package.
"""

import sys
from pathlib import Path

import torch
import torchvision
from inference import CONTESTS, SIDE


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in {contest.torch for contest in CONTESTS if contest.torch}:
        network = torchvision.models.get_model(name, weights=None).eval()
        path = folder / f"torchvision_{name}.onnx"
        torch.onnx.export(network, (torch.zeros(1, 3, SIDE, SIDE),), path, dynamo=True, external_data=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
