"""Compares training steps with those of Keras's and PyTorch's libraries, interleaved, on two threads.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/training_speed.py FOLDER [networks …] [--peers NAME …] [--rounds 5]

Each contestant repeatedly trains on one random batch in float32, with SGD and momentum: in Keras with `compile` and
`fit`, ours with `keras_resdense.SGD`, in PyTorch with the usual loop. A round starts a process for each contestant, one
after the other. The first two steps do not count. The speed in a round is that of the median step. "ours over it" is
the median ratio of the two speeds over the rounds. Memory is the peak of the process beyond the memory after its
imports.

keras.applications' ResNet-50 has its stride in the 1×1 convolution, like resnet50v1. The others have it in the 3×3
convolution, like resnet50. "plain Keras" opens our network from its `.keras` file in a process without the package.
"without oneDNN" turns off oneDNN's kernels, as TensorFlow does by default on AMD, for example. "JAX" is plain Keras on
JAX, whose XLA compiles the training step. "PyTorch" is the network of the CIFAR papers, built from torchvision's
blocks. All builds of a network must have the same number of weights in their kernels.

The limit is the matrix-product rate of the same round, divided by 6 FLOP per multiply-add of the forward pass: 2 for
the pass itself, 2 for the gradient of the inputs and 2 for that of the weights. (The first layer needs no gradient of
its inputs, so the share is up to 1 % too high.) Needs Linux.
"""

import statistics
from collections.abc import Sequence

from contest import Case, conditions, draw, limits, main, median, ratio, speeds
from contestants import FRUGAL, OURS, OUTSIDE
from pages import cell, digits, table

__all__ = ["draw", "tables"]

TORCHVISION = ("torchvision", "torchvision, channels last", "torchvision, compiled", "timm", "timm, channels last")
DENSE = ("keras.applications", "KerasHub", *TORCHVISION)
CIFAR = ("plain Keras", "plain Keras, without oneDNN", "PyTorch", "PyTorch, channels last", "PyTorch, compiled")
JAX = "plain Keras, JAX"

CASES = (
    Case(network="resnet50", side=224, batch=16, steps=4, peers=(FRUGAL, "KerasHub", *TORCHVISION)),
    Case(network="resnet50v1", side=224, batch=16, steps=4, peers=("keras.applications",)),
    Case(network="resnet18", side=224, batch=16, steps=6, peers=("KerasHub", *TORCHVISION)),
    Case(network="densenet121", side=224, batch=8, steps=4, peers=(FRUGAL, *DENSE)),
    Case(network="resnet20", side=28, batch=128, steps=20, classes=10, outside=True, peers=(*CIFAR, JAX)),
    Case(network="densenetbc40_12", side=32, batch=64, steps=15, classes=10, peers=(*CIFAR, JAX)),
    Case(network="densenetbc100_12", side=32, batch=64, steps=6, classes=10, peers=(FRUGAL, *CIFAR)),
    Case(network="resnet50", side=224, batch=32, steps=2, peers=(FRUGAL,)),
    Case(network="resnet18", side=224, batch=32, steps=4, peers=(FRUGAL,)),
    Case(network="densenet121", side=224, batch=1, steps=4, peers=(FRUGAL,)),
    Case(network="densenet121", side=224, batch=32, steps=2, peers=(FRUGAL,)),
)
#: Rows of the table: title, goal over PyTorch, batch and networks. Keras's ResNet-50 strides elsewhere.
ROWS = (
    ("ResNet-50", 1.2, 16, ("resnet50", "resnet50v1")),
    ("ResNet-18", 1.2, 16, ("resnet18",)),
    ("DenseNet-121", 1.1, 8, ("densenet121",)),
    ("ResNet-20", 1.2, 128, ("resnet20",)),
    ("DenseNet-BC-40, k = 12", 1.1, 64, ("densenetbc40_12",)),
    ("DenseNet-BC-100, k = 12", 1.1, 64, ("densenetbc100_12",)),
)
#: Columns of the table: peers in large and in small networks.
KERAS = {
    "Keras": ("keras.applications", "plain Keras"),
    "Keras without oneDNN": ("", "plain Keras, without oneDNN"),
    "Keras on JAX": ("", JAX),
    "KerasHub": ("KerasHub", ""),
}
PYTORCH = {
    "PyTorch": ("torchvision", "PyTorch"),
    "PyTorch, channels last": ("torchvision, channels last", "PyTorch, channels last"),
    "PyTorch, compiled": ("torchvision, compiled", "PyTorch, compiled"),
    "timm, channels last": ("timm, channels last", ""),
}
KERAS_GOAL = 1.25


def over(contests: Sequence[dict], peers: tuple[str, str]) -> float | None:
    """Returns our speed over that of whichever of the peers took part."""
    return next((found for peer in peers if (found := ratio(contests, OURS, peer))), None)


def tables(contests: Sequence[dict]) -> dict[str, str]:
    rows, short = [], []
    for title, goal, batch, networks in ROWS:
        met = [one for one in contests if one["network"] in networks and one["batch"] == batch]
        own = [one for one in met if one["network"] == networks[0]]
        speed = statistics.median(speed for one in own for speed in speeds(one, OURS))
        share = statistics.median(a / b for one in own for a, b in zip(speeds(one, OURS), limits(one), strict=True))
        keras = [over(met, peers) for peers in KERAS.values()]
        pytorch = [over(met, peers) for peers in PYTORCH.values()]
        name = f"{title}, {own[0]['side']}, {batch}"
        figures = [cell(found, goal=KERAS_GOAL) for found in keras] + [cell(found, goal=goal) for found in pytorch]
        rows.append((name, digits(speed), *figures, f"{share:.0%}"))
        fastest = min((found for found in pytorch if found), default=None)
        short.append((f"{title}, {own[0]['side']} pixels", cell(keras[0]), cell(fastest)))
    outside = [found["outside_kernels"] for one in contests for found in one["contestants"].get(OUTSIDE, ())]
    frugal = [
        (
            f"{one['network']}, {one['batch']}",
            *(f"{median([one], name, 'memory_mb'):,.0f}" for name in (OURS, FRUGAL)),
            cell(median([one], FRUGAL, "memory_mb") / median([one], OURS, "memory_mb")),
            cell(ratio([one], OURS, FRUGAL)),
        )
        for one in contests
        if FRUGAL in one["contestants"]
    ]
    header = ("network, size, batch", "images/s", *KERAS, *PYTORCH, "of the limit")
    return {
        "training_speed": f"{conditions(contests)}\n\n{table(header, rows)}\n\n"
        f"`fit` spends {statistics.median(outside):.1%} of a step of ResNet-20 outside of kernels "
        f"({min(outside):.1%} to {max(outside):.1%} in {len(outside)} rounds).",
        "training_in_short": table(("", "Keras", "PyTorch"), short),
        "memory_efficient": table(("network, batch", "MB", "memory-efficient, MB", "memory", "time"), frugal),
    }


if __name__ == "__main__":
    main(__doc__, __file__, CASES, "train")
