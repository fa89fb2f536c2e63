"""Compares training steps with those of Keras's and PyTorch's libraries, interleaved, on two threads.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/training_speed.py FOLDER [networks …] [--peers NAME …] [--rounds 5]

Each contestant repeatedly trains on one random batch in float32, with SGD and momentum: in Keras with `compile` and
`fit`, in PyTorch with the usual loop. A round starts a process for each contestant, one after the other. The first two
steps do not count. The speed in a round is that of the median step. "ours over it" is the median ratio of the two
speeds over the rounds. Memory is the peak of the process beyond the memory after its imports.

keras.applications' ResNet-50 has its stride in the 1×1 convolution, like resnet50v1. The others have it in the 3×3
convolution, like resnet50. "plain Keras" opens our network from its `.keras` file in a process without the package.
"without oneDNN" turns off oneDNN's kernels, as TensorFlow does by default on AMD, for example. "PyTorch" is the network
of the CIFAR papers, built from torchvision's blocks. All builds of a network must have the same number of weights in
their kernels.

The limit is the matrix-product rate of the same round, divided by 6 FLOP per multiply-add of the forward pass: 2 for
the pass itself, 2 for the gradient of the inputs and 2 for that of the weights. (The first layer needs no gradient of
its inputs, so the share is up to 1 % too high.) Writes all measurements to FOLDER/train.json and a chart to
FOLDER/train.png. Needs Linux.
"""

from contest import Case, main
from contestants import FRUGAL

TORCHVISION = ("torchvision", "torchvision, channels last", "torchvision, compiled", "timm", "timm, channels last")
DENSE = ("keras.applications", "KerasHub", *TORCHVISION)
CIFAR = ("plain Keras", "plain Keras, without oneDNN", "PyTorch", "PyTorch, channels last", "PyTorch, compiled")

CASES = (
    Case(network="resnet50", side=224, batch=16, steps=4, peers=("KerasHub", *TORCHVISION)),
    Case(network="resnet50v1", side=224, batch=16, steps=4, peers=("keras.applications",)),
    Case(network="resnet18", side=224, batch=16, steps=6, peers=("KerasHub", *TORCHVISION)),
    Case(network="densenet121", side=224, batch=8, steps=4, peers=(FRUGAL, *DENSE)),
    Case(network="resnet20", side=28, batch=128, steps=20, classes=10, outside=True, peers=CIFAR),
    Case(network="densenetbc40_12", side=32, batch=64, steps=15, classes=10, peers=CIFAR),
    Case(network="densenetbc100_12", side=32, batch=64, steps=6, classes=10, peers=(FRUGAL, *CIFAR)),
)

if __name__ == "__main__":
    main(__doc__, CASES, "train")
