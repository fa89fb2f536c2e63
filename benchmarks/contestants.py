"""Runs one contestant once: builds a network, trains it or predicts with it, and prints the measurements as JSON.

`contest.py` starts it in the contestant's environment with a `Job` as JSON. The processes of peers neither import the
package nor change settings: they run as their users run them. The same file of the package times all of them.
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

import artefacts
import networks
from networks import Job

MEASURING = Path(__file__).parents[1] / "keras_resdense" / "insight" / "stopwatch.py"
stopwatch = types.SimpleNamespace(**runpy.run_path(str(MEASURING)))

#: Side of the matrices whose product measures the processor's rate.
MATRIX_SIDE = 4096
#: Number of times that the matrix product and the loop of steps are timed.
TURNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """A library and the way that it runs a network.

    Attributes:
        environment: "ours", or an environment that `make_peers.py` makes.
        modules: Modules that its users import, in this order.
        work: Function from a job and this row to the measurements.
        build: Function from a job to the network, or from a file and a batch to a function that computes the batch.
        write: Function that takes a job and a path and writes the file for other runs.
        file: Name of that file.
        form: Form of PyTorch: "" for its default, "channels_last" or "compiled".
        settings: Environment variables, as pairs. Peers have none unless their name says so.
    """

    environment: str
    modules: tuple[str, ...]
    work: Callable
    build: Callable | None = None
    write: Callable | None = None
    file: str = ""
    form: str = ""
    settings: tuple[tuple[str, str], ...] = ()


def random_batch(job: Job):
    return stopwatch.random_batch(job.batch, job.side, job.classes)


def sgd(row: Contestant):
    """Returns the class that implements SGD in the package that a contestant's users import."""
    package = importlib.import_module(row.modules[0])
    return getattr(package, "SGD", None) or importlib.import_module("keras").optimizers.SGD


def in_keras(job: Job, row: Contestant) -> dict:
    model = row.build(job)
    images, labels = random_batch(job)
    if job.task == "predict":
        return {"seconds": stopwatch.seconds(lambda: model.predict(images, verbose=0), job.steps)}
    stopwatch.compile_model(model, sgd(row))
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
    images, _ = random_batch(job)
    return {"seconds": stopwatch.seconds(row.build(job.file(row.file), images), job.steps)}


def matrix_product(job: Job, row: Contestant) -> dict:
    """Returns the rate of a large matrix product in GFLOP/s, which no network can exceed."""
    import tensorflow as tf

    matrix = tf.random.normal((MATRIX_SIDE, MATRIX_SIDE))
    fastest = min(stopwatch.seconds(lambda: tf.matmul(matrix, matrix), TURNS))
    return {"gflops": 2 * MATRIX_SIDE**3 / fastest / 1e9}


def outside_kernels(job: Job, row: Contestant) -> dict:
    """Returns the share of a step of `fit` that is lost between steps: Python, calls of TensorFlow, input.

    It is measured against steps in a single call of TensorFlow, in a loop with a fixed batch.
    """
    import tensorflow as tf

    model = row.build(job)
    stopwatch.compile_model(model, sgd(row))
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
    """Counts the weights of convolutions and classifier, which must be equal in all builds of a network."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights if len(weight.shape) > 1)


def describe(job: Job, path: Path) -> dict:
    """Writes our network as a file for plain Keras, and returns its multiply-adds per image and its weights."""
    import keras_resdense

    model = networks.ours(job)
    model.save(path)
    return {"macs": keras_resdense.count_macs(model), "kernels": kernels(model)}


_KERAS = ("keras", "tensorflow")
_LITERT = ("ai_edge_litert.interpreter",)


def _ours(kind: str, modules: tuple[str, ...], open_file: Callable, **changes: object) -> Contestant:
    """Returns a row for a file of one of our exporters."""
    write = functools.partial(artefacts.write_ours, kind=kind, **changes)
    return Contestant(
        environment="ours", modules=modules, work=in_runtime, build=open_file, file=f"ours.{kind}", write=write
    )


_OURS = Contestant(
    environment="ours", modules=("keras_resdense", *_KERAS), work=in_keras, build=networks.ours,
    file=networks.PLAIN, write=describe,
)  # fmt: skip
_THEIRS = Contestant(environment="keras", modules=_KERAS, work=in_keras, build=networks.keras_applications)
_THEIR_LITERT = dataclasses.replace(
    _THEIRS, modules=_LITERT, work=in_runtime, build=artefacts.litert, file="keras_applications.tflite",
    write=artefacts.write_their_tflite,
)  # fmt: skip
_TORCH = {
    "torchvision": Contestant(
        environment="torch", modules=("torch", "torchvision"), work=in_torch, build=networks.torchvision
    ),
    "timm": Contestant(environment="torch", modules=("torch", "timm"), work=in_torch, build=networks.timm),
    "PyTorch": Contestant(environment="torch", modules=("torch", "torchvision"), work=in_torch, build=networks.cifar),
}
_ONNX = Contestant(
    environment="torch", modules=("onnxruntime",), work=in_runtime, build=artefacts.onnx_runtime,
    file="torchvision.onnx", write=artefacts.write_onnx,
)  # fmt: skip
_FLOAT32 = functools.partial(artefacts.openvino, INFERENCE_PRECISION_HINT="f32")
_FASTEST = Contestant(
    environment="ours", modules=("keras_resdense", *_KERAS), work=in_runtime, build=artefacts.fastest_runtime,
    file=networks.PLAIN,
)  # fmt: skip

FASTEST, FASTEST_BFLOAT16 = "ours, fastest runtime", "ours, fastest runtime in bfloat16"
OURS, MATRIX, OUTSIDE, FRUGAL = "ours", "matrix product", "ours, outside kernels", "ours, memory_efficient"
LITERT, DYNAMIC, INT8, OPENVINO = "ours, LiteRT", "ours, LiteRT dynamic", "ours, LiteRT int8", "ours, OpenVINO"
CONTESTANTS = {
    OURS: _OURS,
    MATRIX: dataclasses.replace(_OURS, work=matrix_product),
    OUTSIDE: dataclasses.replace(_OURS, work=outside_kernels),
    FRUGAL: dataclasses.replace(_OURS, build=networks.frugal, file="", write=None),
    "ours, folded": dataclasses.replace(_OURS, build=networks.folded, file="", write=None),
    "ours, SavedModel": _ours("saved_model", _KERAS, artefacts.saved_model),
    "ours, frozen SavedModel": _ours("saved_model_frozen", _KERAS, artefacts.saved_model),
    FASTEST: _FASTEST,
    FASTEST_BFLOAT16: dataclasses.replace(
        _FASTEST, build=functools.partial(artefacts.fastest_runtime, precision="bfloat16")
    ),
    LITERT: _ours("tflite", _LITERT, artefacts.litert),
    DYNAMIC: _ours("tflite_dynamic", _LITERT, artefacts.litert),
    # Like their int8 files, this has no conversion from bytes to the network's input.
    INT8: _ours("tflite_int8", _LITERT, artefacts.litert, pixels="int8"),
    OPENVINO: _ours("tflite", ("openvino",), _FLOAT32),
    "plain Keras": dataclasses.replace(_THEIRS, build=networks.plain_keras),
    "plain Keras, without oneDNN": dataclasses.replace(
        _THEIRS, build=networks.plain_keras, settings=(("TF_ENABLE_ONEDNN_OPTS", "0"),)
    ),
    # Otherwise JAX returns before a step is computed.
    "plain Keras, JAX": dataclasses.replace(
        _THEIRS, modules=("keras", "jax"), build=networks.plain_keras,
        settings=(("KERAS_BACKEND", "jax"), ("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")),
    ),
    "keras.applications": _THEIRS,
    "keras.applications, SavedModel": dataclasses.replace(
        _THEIRS, work=in_runtime, build=artefacts.saved_model, file="keras_applications",
        write=artefacts.write_their_saved_model,
    ),
    "keras.applications, LiteRT": _THEIR_LITERT,
    "keras.applications, LiteRT int8": dataclasses.replace(
        _THEIR_LITERT, file="keras_applications_int8.tflite",
        write=functools.partial(artefacts.write_their_tflite, int8=True),
    ),
    "KerasHub": dataclasses.replace(_THEIRS, modules=("keras_hub", *_KERAS), build=networks.keras_hub),
    **_TORCH,
    **{f"{name}, channels last": dataclasses.replace(row, form="channels_last") for name, row in _TORCH.items()},
    **{f"{name}, compiled": dataclasses.replace(row, form="compiled") for name, row in _TORCH.items()},
    "torchvision, ONNX Runtime": _ONNX,
    "torchvision, OpenVINO": dataclasses.replace(_ONNX, modules=("openvino",), build=_FLOAT32),
    "torchvision, OpenVINO bfloat16": dataclasses.replace(_ONNX, modules=("openvino",), build=artefacts.openvino),
}  # fmt: skip


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    row = CONTESTANTS[job.contestant]
    for name in row.modules:
        importlib.import_module(name)
    if job.task == "write":
        path = job.file(row.file)
        found = row.write(job, path) or {}
        found["file_mb"] = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) / 1e6
    else:
        before = stopwatch.memory_mb("VmRSS")
        found = row.work(job, row)
        found["peak_memory_mb"] = stopwatch.memory_mb()
        found["memory_mb"] = found["peak_memory_mb"] - before
    packages = [name.partition(".")[0] for name in row.modules]
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps(found | {"versions": versions}))


if __name__ == "__main__":
    main()
