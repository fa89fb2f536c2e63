"""Measures one loader or one training step for `loading.py`, in a process of its own.

    python benchmarks/loaders.py NAME FOLDER COUNT

The loaders make batches of 64 images of 224 × 224 pixels from a folder of JPEGs. The steps train alternately on batches
of a recipe's pipeline and on one batch in memory. The difference is the time to wait for the pipeline, and the cores
that it takes from the step.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

SIDE, BATCH, WORKERS, UNTIMED, ROUNDS = 224, 64, 2, 4, 3
#: Mean and standard deviation of torchvision's and timm's transforms.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(folder: str, recipe: str) -> Iterator:
    import keras_resdense
    from keras_resdense.data.batches import training_batches
    from keras_resdense.data.plan import Plan

    data = keras_resdense.load_data(folder)
    row = dataclasses.replace(keras_resdense.RECIPES[recipe].recipe, batch_size=BATCH, crop="area", repeats=1)
    plan = Plan(recipe=row, size=(SIDE, SIDE), classes=len(data.class_names))
    return iter(training_batches(data.train, plan, keras_resdense.strategy("none")))


def bare(folder: str, antialias: bool) -> Iterator:
    """A pipeline as one would write it by hand, without order, keys, augmentation and checks."""
    import pathlib

    import tensorflow as tf

    def load(path):
        content = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(content),
            tf.zeros((1, 0, 4)),
            min_object_covered=0.0,
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.io.decode_and_crop_jpeg(content, tf.concat([begin[:2], size[:2]], 0), channels=3)
        return tf.image.random_flip_left_right(tf.image.resize(image, (SIDE, SIDE), antialias=antialias))

    paths = [str(path) for path in pathlib.Path(folder).rglob("*.jpg")]
    images = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    return iter(images.map(load, tf.data.AUTOTUNE).batch(BATCH).prefetch(2))


def torch_loader(folder: str, transform: Callable) -> Iterator:
    import torch
    import torchvision

    data = torchvision.datasets.ImageFolder(folder, transform)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    while True:
        yield from loader


def torchvision_transform() -> Callable:
    from torchvision import transforms

    steps = [transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])


def timm_transform(augmentation: str | None) -> Callable:
    from timm.data import create_transform

    return create_transform(
        (3, SIDE, SIDE), is_training=True, auto_augment=augmentation, color_jitter=None, interpolation="bilinear"
    )


#: Environment of each contestant, and its function from a folder to batches.
LOADERS: dict[str, tuple[str, Callable[[str], Iterator]]] = {
    "ours, crop and flip": ("ours", lambda folder: ours(folder, "densenet_imagenet")),
    "tf.data, not antialiased": ("ours", lambda folder: bare(folder, False)),
    "tf.data, antialiased": ("ours", lambda folder: bare(folder, True)),
    "torchvision": ("torch", lambda folder: torch_loader(folder, torchvision_transform())),
    "ours, strikes_back_a2": ("ours", lambda folder: ours(folder, "strikes_back_a2")),
    "timm, rand-m7-mstd0.5-inc1": (
        "torch",
        lambda folder: torch_loader(folder, timm_transform("rand-m7-mstd0.5-inc1")),
    ),
}
_AT_224 = {"model": "resnet18", "batch_size": 16, "image_size": SIDE}
#: Steps to measure: recipe, data, for which there is also a folder made by `prepare`, and changes of the recipe.
STEPS: dict[str, tuple[str, str, dict]] = {
    "ResNet-20, Fashion-MNIST, batch 128": ("fast", "fashion_mnist", {}),
    "ResNet-18 at 224, a folder, batch 16": ("resnet_imagenet", "{}", _AT_224),
    "ResNet-18 at 224, prepared, batch 16": ("resnet_imagenet", "{}-prepared", _AT_224),
}


def load(name: str, folder: str, count: int) -> dict[str, float]:
    """Measures a loader for some batches."""
    batches = LOADERS[name][1](folder)
    for _ in range(UNTIMED):
        next(batches)
    start, processor = time.perf_counter(), sum(os.times()[:4])
    for _ in range(count):
        next(batches)
    seconds, processor, images = time.perf_counter() - start, sum(os.times()[:4]) - processor, count * BATCH
    # The processes that a DataLoader starts are not counted before they end.
    counted = {} if LOADERS[name][0] == "torch" else {"processor_ms": 1000 * processor / images}
    return {"images_per_second": images / seconds} | counted


def train(name: str, folder: str, count: int) -> dict[str, float]:
    """Measures some steps of a recipe, with its pipeline and without."""
    import tensorflow as tf

    import keras_resdense
    from keras_resdense.data.batches import pixel_statistics, training_batches
    from keras_resdense.training import optimisation, recipes
    from keras_resdense.training.classifier import build_classifier, network, plan_of
    from keras_resdense.training.devices import strategy

    row, data_name, changes = STEPS[name]
    recipe = dataclasses.replace(keras_resdense.RECIPES[row].recipe, **changes)
    data, devices, settings = keras_resdense.load_data(data_name.format(folder)), strategy("none"), recipes.Settings()
    plan, channels = plan_of(recipe, data, network(recipe), settings.seed), data.image_shape[2]
    with devices.scope():
        normalisation = pixel_statistics(data.train, plan.contract(channels))
        model = build_classifier(network(recipe), plan, normalisation, channels)
        optimisation.compile_phase(model, optimisation.phases_of(recipe)[-1], recipe, settings, count)
    batches = training_batches(data.train, plan, devices)
    model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)
    streamed = iter(batches)
    repeated = iter(tf.data.Dataset.from_tensors(next(streamed)).repeat())

    def seconds(source: Iterator) -> float:
        # First use up the batches that were prefetched during the other source's turn.
        for _ in range(UNTIMED):
            model.train_function(source)
        start = time.perf_counter()
        for _ in range(count):
            model.train_function(source)
        return (time.perf_counter() - start) / count

    rounds = [(seconds(streamed), seconds(repeated)) for _ in range(ROUNDS)]
    return {
        "step_ms": 1000 * statistics.median(used for used, _ in rounds),
        "waiting": statistics.median(1 - without / used for used, without in rounds),
        "least": min(1 - without / used for used, without in rounds),
        "most": max(1 - without / used for used, without in rounds),
    }


def main() -> None:
    name, folder, count = sys.argv[1:]
    print(json.dumps((load if name in LOADERS else train)(name, folder, int(count))))
    sys.stdout.flush()
    # DataLoader's workers need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
