"""Training steps of our networks against those of Keras's and PyTorch's libraries, interleaved, on two threads.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/training_speed.py FOLDER [networks …] [--peers NAME …] [--rounds 5]

Each contestant trains on one random batch in float32, with SGD and momentum, again and again: in Keras by `compile` and
`fit`, in PyTorch by the usual loop. A round starts a process for each, one after the other; the first two steps of each
do not count. A contestant's speed in a round is that of its median step; "ours over it" is the median, over the rounds,
of the two speeds' ratio, and memory the most that its process held beyond what its imports had taken.

keras.applications' ResNet-50 strides in the 1×1 convolution, as resnet50v1 does; the others' in the 3×3, as resnet50.
"plain Keras" is our network opened from its `.keras` file by a process without the package; "without oneDNN" as
TensorFlow runs it where it leaves oneDNN's kernels off by itself, such as on AMD. "PyTorch" is the network of
the CIFAR papers made of torchvision's blocks. All builds of a network must have as many weights in their kernels.

The limit is the matrix-product rate of that very round over 6 FLOP for each multiply-add of the forward pass: 2 there,
2 for the gradient of the inputs and 2 for that of the weights. (The first layer needs none of the inputs', so that the
share is up to 1 % too high.) FOLDER/train.json gets all that was measured, FOLDER/train.png a chart. Needs Linux.
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
