"""One run of one contestant: builds a network, trains it or computes with it, and prints what that took as JSON.

`contest.py` starts it, in the contestant's environment, with a `Job` as JSON. The peers' processes neither import
the package nor set anything: they run as their users run them. The same file of the package times them all.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import json
import math
import runpy
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path

MEASURING = Path(__file__).parents[1] / "keras_resdense" / "insight" / "stopwatch.py"
stopwatch = types.SimpleNamespace(**runpy.run_path(str(MEASURING)))

THREADS = 2
#: Side of the matrices whose product tells what the processor can do.
MATRIX_SIDE = 4096
#: How often those things are timed that are measured by the side.
TURNS = 3

#: What peers make our networks of, where they do not know them by our names.
KERAS_APPLICATIONS = {"resnet50v1": "ResNet50", "densenet121": "DenseNet121"}
KERAS_HUB_RESNETS = {"resnet18": ((2, 2, 2, 2), "basic_block"), "resnet50": ((3, 4, 6, 3), "bottleneck_block")}
KERAS_HUB_DENSENETS = {"densenet121": (6, 12, 24, 16)}
CIFAR_RESNETS = {"resnet20": (3, 3, 3)}
CIFAR_DENSENETS = {"densenetbc40_12": (6, 6, 6), "densenetbc100_12": (16, 16, 16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is to do.

    Attributes:
        contestant: Name of a row of `CONTESTANTS`.
        task: "train" or "predict", or "write" for files that other runs read.
        network: Our name of it.
        side: Of its images, in pixels.
        batch: Images at once.
        classes: Of its classifier.
        steps: To time.
        folder: Where files are.
        depths: Of the network's stages; none for its own.
    """

    contestant: str
    task: str
    network: str
    side: int
    batch: int
    classes: int
    steps: int
    folder: str
    depths: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.side, self.side, 3

    def file(self, kind: str) -> str:
        """Returns the path of a file that is written in one process and read in others."""
        return str(Path(self.folder) / f"{self.network}_{self.side}_{self.batch}_{kind}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """Who computes, and how.

    Attributes:
        environment: "ours", or one of those that `make_peers.py` makes.
        modules: What its users import, in this order.
        work: Takes a job and this row, and returns what was measured.
        build: Takes a job, and returns the network, or a function that computes.
        write: Takes a job, writes what other runs read, and returns what they are to know.
        form: How PyTorch runs: "" as it is, "channels_last" or "compiled".
        settings: Of the environment, as pairs; peers have none but where it is said.
    """

    environment: str
    modules: tuple[str, ...]
    work: Callable
    build: Callable | None = None
    write: Callable | None = None
    form: str = ""
    settings: tuple[tuple[str, str], ...] = ()


def random_batch(job: Job):
    return stopwatch.random_batch(job.batch, job.side, job.classes)


def in_keras(job: Job, row: Contestant) -> dict:
    model = row.build(job)
    images, labels = random_batch(job)
    if job.task == "predict":
        return {"seconds": stopwatch.seconds(lambda: model.predict(images, verbose=0), job.steps)}
    stopwatch.compile_model(model)
    return {"seconds": stopwatch.fit_seconds(model, images, labels, job.steps), "kernels": kernels(model)}


def in_torch(job: Job, row: Contestant) -> dict:
    import torch

    torch.manual_seed(0)
    model = row.build(job)
    images, labels = map(torch.from_numpy, random_batch(job))
    images = images.permute(0, 3, 1, 2).contiguous()
    if row.form == "channels_last":
        model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
    run = torch.compile(model) if row.form == "compiled" else model
    if job.task == "predict":
        model.eval()
        with torch.inference_mode():
            return {"seconds": stopwatch.seconds(lambda: run(images), job.steps)}
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run(images), labels).backward()
        optimizer.step()

    count = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)
    return {"seconds": stopwatch.seconds(step, job.steps), "kernels": count}


def in_runtime(job: Job, row: Contestant) -> dict:
    run, (images, _) = row.build(job), random_batch(job)
    return {"seconds": stopwatch.seconds(lambda: run(images), job.steps)}


def matrix_product(job: Job, row: Contestant) -> dict:
    """Returns the rate of a large matrix product, in GFLOP/s: what no network can exceed."""
    import tensorflow as tf

    matrix = tf.random.normal((MATRIX_SIDE, MATRIX_SIDE))
    fastest = min(stopwatch.seconds(lambda: tf.matmul(matrix, matrix), TURNS))
    return {"gflops": 2 * MATRIX_SIDE**3 / fastest / 1e9}


def outside_kernels(job: Job, row: Contestant) -> dict:
    """Returns the share of a step of `fit` that is lost between the steps: Python, calls of TensorFlow, input.

    That is what steps save that are made in one call of TensorFlow, by a loop that knows its batch.
    """
    import tensorflow as tf

    model = row.build(job)
    stopwatch.compile_model(model)
    images, labels = map(tf.constant, random_batch(job))

    def step(index, images, labels):
        model.train_step((images, labels))
        return index + 1, images, labels

    @tf.function(autograph=False)
    def steps(images, labels):
        start = (0, images, labels)
        return tf.while_loop(lambda index, *_: index < job.steps, step, start, parallel_iterations=1)[0]

    shares = []
    for _ in range(TURNS):
        in_fit = sum(stopwatch.fit_seconds(model, images, labels, job.steps))
        (in_loop,) = stopwatch.seconds(lambda: steps(images, labels).numpy(), 1, warm_up=1)
        shares.append(1 - in_loop / in_fit)
    return {"outside_kernels": statistics.median(shares)}


def kernels(model) -> int:
    """Counts the weights of convolutions and classifier, which two builds of one network must have in common."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights if len(weight.shape) > 1)


def our_row(job: Job):
    import keras_resdense

    row = keras_resdense.VARIANTS[job.network]
    return dataclasses.replace(row, depths=tuple(job.depths)) if job.depths else row


def ours(job: Job):
    import keras_resdense

    return keras_resdense.create_model(our_row(job), input_shape=job.shape, classes=job.classes)


def frugal(job: Job):
    import keras_resdense

    row = dataclasses.replace(our_row(job), memory_efficient=True)
    return keras_resdense.create_model(row, input_shape=job.shape, classes=job.classes)


def describe(job: Job) -> dict:
    """Writes our network as a file of plain Keras; returns what it computes for an image, and its size."""
    import keras_resdense

    model = ours(job)
    model.save(job.file("plain.keras"))
    return {"macs": keras_resdense.count_macs(model), "kernels": kernels(model)}


def folded(job: Job):
    import keras_resdense

    return keras_resdense.fold_batch_norm(ours(job))


def exporter(job: Job, kind: str):
    from keras_resdense.exporting.formats import EXPORTERS

    return dataclasses.replace(EXPORTERS[kind], batch=job.batch) if kind == "tflite" else EXPORTERS[kind]


def write_ours(job: Job, kind: str) -> dict:
    made = exporter(job, kind)
    made.write(made.prepare(ours(job)), Path(job.file(kind)), None)
    return {}


def read_ours(job: Job, kind: str) -> Callable:
    return exporter(job, kind).read(Path(job.file(kind)), THREADS)


def plain_keras(job: Job):
    """Our network as Keras computes it by itself, without the package."""
    import keras

    return keras.saving.load_model(job.file("plain.keras"), compile=False)


def keras_applications(job: Job):
    import keras

    build = getattr(keras.applications, KERAS_APPLICATIONS[job.network])
    return build(weights=None, input_shape=job.shape, classes=job.classes)


def write_their_saved_model(job: Job) -> dict:
    keras_applications(job).export(job.file("their_saved_model"), verbose=False)
    return {}


def their_saved_model(job: Job) -> Callable:
    import tensorflow as tf

    artefact = tf.saved_model.load(job.file("their_saved_model"))
    return lambda images: artefact.serve(tf.constant(images)).numpy()


def write_their_tflite(job: Job) -> dict:
    import tensorflow as tf

    Path(job.file("their.tflite")).write_bytes(
        tf.lite.TFLiteConverter.from_keras_model(keras_applications(job)).convert()
    )
    return {}


def their_tflite(job: Job) -> Callable:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(job.file("their.tflite"), num_threads=THREADS)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], (job.batch, *job.shape))
    interpreter.allocate_tensors()

    def run(images):
        interpreter.set_tensor(source["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run


def keras_hub(job: Job):
    from keras_hub import models

    if job.network in KERAS_HUB_DENSENETS:
        backbone = models.DenseNetBackbone(KERAS_HUB_DENSENETS[job.network], image_shape=job.shape)
        return models.DenseNetImageClassifier(backbone, job.classes, activation="softmax")
    depths, block = KERAS_HUB_RESNETS[job.network]
    backbone = models.ResNetBackbone([64], [7], [64, 128, 256, 512], depths, [1, 2, 2, 2], block, image_shape=job.shape)
    return models.ResNetImageClassifier(backbone, job.classes, activation="softmax")


def torchvision(job: Job):
    import torchvision

    return torchvision.models.get_model(job.network, num_classes=job.classes)


def timm(job: Job):
    import timm

    return timm.create_model(job.network, num_classes=job.classes)


def cifar(job: Job):
    """The networks for small images, which PyTorch's libraries lack, of torchvision's blocks and dense network."""
    import torch
    from torch import nn
    from torchvision.models import DenseNet
    from torchvision.models.resnet import BasicBlock

    if job.network in CIFAR_DENSENETS:
        model = DenseNet(12, CIFAR_DENSENETS[job.network], num_init_features=24, num_classes=job.classes)
        model.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        model.features.norm0 = model.features.relu0 = model.features.pool0 = nn.Identity()
        return model

    class Shortcut(nn.Module):
        """Every second pixel, and zeros for new channels: option A of 1512.03385, section 3.3."""

        def forward(self, x):
            return torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], 1)

    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    for stage, depth in enumerate(CIFAR_RESNETS[job.network]):
        filters = 16 * 2**stage
        for index in range(depth):
            strided = stage > 0 and index == 0
            model.append(BasicBlock(filters // 2, filters, 2, Shortcut()) if strided else BasicBlock(filters, filters))
    return model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, job.classes)])


_KERAS = ("keras", "tensorflow")
_ours = {"environment": "ours", "modules": ("keras_resdense", *_KERAS)}
_theirs = {"environment": "keras", "modules": _KERAS}


def _file(kind: str) -> dict:
    return {"build": functools.partial(read_ours, kind=kind), "write": functools.partial(write_ours, kind=kind)}


_OURS = Contestant(**_ours, work=in_keras, build=ours, write=describe)
_TORCH = {
    "torchvision": Contestant(environment="torch", modules=("torch", "torchvision"), work=in_torch, build=torchvision),
    "timm": Contestant(environment="torch", modules=("torch", "timm"), work=in_torch, build=timm),
    "PyTorch": Contestant(environment="torch", modules=("torch", "torchvision"), work=in_torch, build=cifar),
}
OURS, MATRIX, OUTSIDE, FRUGAL = "ours", "matrix product", "ours, outside kernels", "ours, memory_efficient"
CONTESTANTS = {
    OURS: _OURS,
    MATRIX: dataclasses.replace(_OURS, work=matrix_product),
    OUTSIDE: dataclasses.replace(_OURS, work=outside_kernels),
    FRUGAL: dataclasses.replace(_OURS, build=frugal, write=None),
    "ours, folded": Contestant(**_ours, work=in_keras, build=folded),
    "ours, SavedModel": Contestant(**_ours, work=in_runtime, **_file("saved_model")),
    "ours, frozen SavedModel": Contestant(**_ours, work=in_runtime, **_file("saved_model_frozen")),
    "ours, LiteRT": Contestant(**_ours, work=in_runtime, **_file("tflite")),
    "plain Keras": Contestant(**_theirs, work=in_keras, build=plain_keras),
    "plain Keras, without oneDNN": Contestant(
        **_theirs, work=in_keras, build=plain_keras, settings=(("TF_ENABLE_ONEDNN_OPTS", "0"),)
    ),
    "keras.applications": Contestant(**_theirs, work=in_keras, build=keras_applications),
    "keras.applications, SavedModel": Contestant(
        **_theirs, work=in_runtime, build=their_saved_model, write=write_their_saved_model
    ),
    "keras.applications, LiteRT": Contestant(**_theirs, work=in_runtime, build=their_tflite, write=write_their_tflite),
    "KerasHub": Contestant(environment="keras", modules=("keras_hub", *_KERAS), work=in_keras, build=keras_hub),
    **_TORCH,
    **{f"{name}, channels last": dataclasses.replace(row, form="channels_last") for name, row in _TORCH.items()},
    **{f"{name}, compiled": dataclasses.replace(row, form="compiled") for name, row in _TORCH.items()},
}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    row = CONTESTANTS[job.contestant]
    for name in row.modules:
        importlib.import_module(name)
    if job.task == "write":
        found = row.write(job)
    else:
        before = stopwatch.memory_mb("VmRSS")
        found = row.work(job, row)
        found["memory_mb"] = stopwatch.memory_mb() - before
    versions = {name: importlib.metadata.version(name) for name in row.modules}
    print(json.dumps(found | {"versions": versions}))


if __name__ == "__main__":
    main()
