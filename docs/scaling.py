"""Bytes that replicas exchange in a step, and the bandwidth at which that costs a tenth; bytes and cores for images.

    python docs/scaling.py [--replicas 8]

docs/scaling.md says how.
"""

import argparse
import dataclasses
import json
import math
import statistics
from pathlib import Path

import keras_resdense

#: Share of its time that a replica is to compute.
EFFICIENCY = 0.9
FLOAT = 4
REFERENCE = "resnet50"
NETWORKS = (REFERENCE, "densenet121")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What one GPU does alone with ResNet-50 and XLA.

    NVIDIA DeepLearningExamples, TensorFlow/Classification/ConvNets/resnet50v1.5, "Training performance results",
    TensorFlow 20.06-tf1-py3.
    """

    gpu: str
    precision: str
    batch: int
    images_per_second: float


ROWS = (
    Published(gpu="V100 16 GB", precision="float32", batch=128, images_per_second=412),
    Published(gpu="V100 16 GB", precision="mixed", batch=256, images_per_second=1270),
    Published(gpu="A100 40 GB", precision="TF32", batch=256, images_per_second=808),
    Published(gpu="A100 40 GB", precision="mixed", batch=256, images_per_second=1770),
)


#: Size of ImageNet's training images, in images and in bytes of their archive, `ILSVRC2012_img_train.tar`.
IMAGES, BYTES = 1_281_167, 147_897_477_120
#: What `benchmarks/loading.py` measured, and its loaders by recipes that prepare an image alike.
MEASURED = Path(__file__).parent.parent / "benchmarks" / "loading.json"
PREPARING = {
    ("resnet_imagenet", "densenet_imagenet"): "ours, crop and flip",
    ("strikes_back_a1", "strikes_back_a2", "strikes_back_a3"): "ours, strikes_back_a2",
}


def print_images(replicas: int) -> None:
    """Prints what reading ImageNet takes of each worker, and preparing it of the cores beside each GPU."""
    print("\n| workers | GB read by each in an epoch | with `--same-order` |\n|---:|---:|---:|")
    for workers in (1, 4, replicas):
        print(f"| {workers} | {BYTES / workers / 1e9:.0f} | {BYTES / 1e9:.0f} |")
    gpus = " | ".join(f"{row.gpu}, {row.precision}" for row in ROWS)
    print(f"\n| recipes | ms an image | {gpus} |\n|---|---:|{'---:|' * len(ROWS)}")
    loaders = json.loads(MEASURED.read_text(encoding="utf-8"))["loaders"]
    for recipes, loader in PREPARING.items():
        milliseconds = statistics.median(measured["processor_ms"] for measured in loaders[loader])
        cores = " | ".join(f"{row.images_per_second * milliseconds / 1e3:.1f}" for row in ROWS)
        print(f"| {', '.join(recipes)} | {milliseconds:.1f} | {cores} |")


def bytes_sent(floats: int, replicas: int) -> float:
    """Returns the bytes that each replica sends, and receives, in a ring all-reduce of so many floats."""
    return 2 * (replicas - 1) / replicas * FLOAT * floats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=8, help="that share the work; default %(default)s")
    replicas = parser.parse_args().replicas

    models = {name: keras_resdense.create_model(name) for name in NETWORKS}
    macs = {name: keras_resdense.count_macs(model) for name, model in models.items()}
    print(f"{replicas} replicas\n\n| network | GPU | images | step, ms | MB sent | GB/s for {EFFICIENCY:.0%} |")
    print("|---|---|---:|---:|---:|---:|")
    for name, model in models.items():
        statistics = sum(math.prod(weight.shape) for weight in model.non_trainable_weights)
        sent = bytes_sent(keras_resdense.count_parameters(model) + statistics, replicas)
        for row in ROWS:
            seconds = row.batch / row.images_per_second * macs[name] / macs[REFERENCE]
            bandwidth = sent / seconds * EFFICIENCY / (1 - EFFICIENCY)
            print(
                f"| {name} | {row.gpu}, {row.precision} | {row.batch} | {seconds * 1e3:.0f} | {sent / 1e6:.0f}"
                f" | {bandwidth / 1e9:.1f} |"
            )
    print_images(replicas)


if __name__ == "__main__":
    main()
