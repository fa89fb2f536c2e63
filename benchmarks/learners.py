"""Trains ResNet-20 on Fashion-MNIST once, and prints minutes and accuracy after each epoch as JSON.

`time_to_accuracy.py` starts it in the contestant's environment with a `Job` as JSON. The clock starts after the imports
and stops while the test images are evaluated. It includes reading the images, building the network and compiling.
"""

import dataclasses
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BATCH, SIDE, CLASSES, PADDING = 128, 28, 10, 4
RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
#: Shares of the training after which the paper divides the rate by 10: 32,000 and 48,000 of 64,000 steps.
MILESTONES = (0.5, 0.75)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One training.

    Attributes:
        contestant: Key of `LEARNERS`.
        folder: Folder with the images and, for each seed, our untrained network.
        seed: Seed of weights, order and augmentation.
        epochs: Number of epochs.
        share: Share of the training images; less than 1 for a trial.
    """

    contestant: str
    folder: str
    seed: int
    epochs: int
    share: float = 1.0

    @property
    def images(self) -> Path:
        return Path(self.folder) / "fashion_mnist.npz"

    @property
    def network(self) -> Path:
        return Path(self.folder) / f"resnet20_{SIDE}_{self.seed}.keras"


class Stopwatch:
    """Minutes of training and accuracy after each epoch. Time is counted from its creation, without pauses."""

    def __init__(self):
        self.start, self.paused, self.points = time.perf_counter(), 0.0, []

    def pause(self) -> None:
        self.paused = time.perf_counter()

    def resume(self) -> None:
        self.start += time.perf_counter() - self.paused

    def note(self, accuracy: float) -> None:
        self.points.append(((time.perf_counter() - self.start) / 60, accuracy))
        print(f"epoch {len(self.points)}: {self.points[-1]}", file=sys.stderr, flush=True)

    def callback(self):
        import keras

        return keras.callbacks.LambdaCallback(
            on_test_begin=lambda logs: self.pause(),
            on_test_end=lambda logs: self.resume(),
            on_epoch_end=lambda epoch, logs: self.note(float(logs["val_accuracy"])),
        )


def ours(job: Job, watch: Stopwatch) -> None:
    """Trains as `keras-resdense train --recipe fast --epochs … --keep --precision auto`, without exports."""
    from keras_resdense.data.examples import in_memory
    from keras_resdense.data.sources import load_data
    from keras_resdense.training import train
    from keras_resdense.training.recipes import Settings, get_recipe

    data = load_data("fashion_mnist")
    if job.share < 1:
        images, labels, _ = data.train.read(np.arange(int(job.share * data.train.count)))
        data = dataclasses.replace(data, train=in_memory(images, labels))
    recipe = dataclasses.replace(get_recipe("fast"), epochs=job.epochs, keep=True)
    known = train._callbacks
    train.FORMATS, train._callbacks = (), lambda *given: [*known(*given), watch.callback()]
    with tempfile.TemporaryDirectory() as folder:
        train.train(recipe, Settings(seed=job.seed, precision="auto"), folder=folder, data=data)


def read(job: Job) -> tuple[np.ndarray, ...]:
    """Returns images `(count, 28, 28, 1)` of mean 0 and deviation 1, and classes, to train on and to test."""
    with np.load(job.images) as found:
        images, classes, test, test_classes = (found[name] for name in ("images", "classes", "test", "test_classes"))
    count = int(job.share * len(images))
    mean, deviation = images.mean(), images.std()
    images, test = (((part - mean) / deviation).astype("float32") for part in (images[:count], test))
    return images, classes[:count], test, test_classes


def epoch(images: np.ndarray, classes: np.ndarray, random: np.random.Generator) -> Iterator[tuple]:
    """Yields the batches of an epoch: shuffled, padded, cropped and flipped at random."""
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    order = random.permutation(len(images))
    for first in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[first : first + BATCH]
        rows, columns = random.integers(2 * PADDING + 1, size=(2, BATCH, 1)) + np.arange(SIDE)
        columns = np.where(random.random((BATCH, 1)) < 0.5, columns[:, ::-1], columns)
        yield padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]], classes[chosen]


def boundaries(job: Job, steps: int) -> list[int]:
    """Returns the steps after which the rate is divided by 10, for so many steps an epoch."""
    return [round(share * job.epochs * steps) for share in MILESTONES]


def plain_keras(job: Job, watch: Stopwatch) -> None:
    """Trains our network in plain Keras, with its own layers and `fit`."""
    import keras

    images, classes, test, test_classes = read(job)
    random, steps = np.random.default_rng(job.seed), len(images) // BATCH

    def batches() -> Iterator[tuple]:
        while True:
            yield from epoch(images, classes, random)

    model = keras.saving.load_model(job.network, compile=False)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries(job, steps), [RATE, RATE / 10, RATE / 100])
    optimizer = keras.optimizers.SGD(rate, momentum=MOMENTUM)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    checks = {"validation_data": (test, test_classes), "validation_batch_size": 500}
    model.fit(batches(), steps_per_epoch=steps, epochs=job.epochs, callbacks=[watch.callback()], verbose=0, **checks)


def resnet20_in_torch():
    """Builds the paper's network, section 4.2: batch norm, shortcuts of option A, He's initial weights."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int):
            super().__init__()
            self.stride, self.more = filters // inputs, filters - inputs
            self.conv1 = nn.Conv2d(inputs, filters, 3, self.stride, 1, bias=False)
            self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(filters), nn.BatchNorm2d(filters)

        def forward(self, x):
            y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
            shortcut = x[:, :, :: self.stride, :: self.stride]
            return torch.relu(y + functional.pad(shortcut, (0, 0, 0, 0, 0, self.more)))

    parts, filters = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for wider in (16, 32, 64):
        for _ in range(3):
            parts.append(Block(filters, wider))
            filters = wider
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, CLASSES))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model


def pytorch(job: Job, watch: Stopwatch) -> None:
    """Trains with the usual loop, on feature maps with channels last, PyTorch's fastest form without compiling."""
    import torch
    from torch.nn import functional

    torch.manual_seed(job.seed)
    images, classes, test, test_classes = read(job)
    random, steps = np.random.default_rng(job.seed), len(images) // BATCH

    def to_torch(part: np.ndarray):
        return torch.from_numpy(part).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    model = resnet20_in_torch().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, boundaries(job, steps))
    for _ in range(job.epochs):
        model.train()
        for some, their in epoch(images, classes, random):
            optimizer.zero_grad()
            functional.cross_entropy(model(to_torch(some)), torch.from_numpy(their)).backward()
            optimizer.step()
            schedule.step()
        watch.pause()
        model.eval()
        with torch.inference_mode():
            answers = torch.cat([model(to_torch(part)).argmax(1) for part in np.array_split(test, 20)]).numpy()
        watch.resume()
        watch.note(float((answers == test_classes).mean()))


#: The modules that a contestant's users import, its packages, and the function that trains it.
LEARNERS: dict[str, tuple[tuple[str, ...], Callable[[Job, Stopwatch], None]]] = {
    "ours": (("keras_resdense", "keras", "tensorflow"), ours),
    "plain Keras": (("keras", "tensorflow"), plain_keras),
    "PyTorch": (("torch",), pytorch),
}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    modules, learn = LEARNERS[job.contestant]
    for name in modules:
        __import__(name)
    watch = Stopwatch()
    learn(job, watch)
    versions = {name: importlib.metadata.version(name) for name in modules}
    print("\n" + json.dumps({"points": watch.points, "versions": versions}))


if __name__ == "__main__":
    main()
