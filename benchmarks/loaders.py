"""The contestants of `loading.py`: each makes batches of 64 images of 224 × 224 from a folder of JPEGs.

python benchmarks/loaders.py NAME FOLDER BATCHES
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator

SIDE, BATCH, WORKERS, UNTIMED = 224, 64, 2, 4
#: The mean and the standard deviation that torchvision's and timm's transforms normalise by.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(folder: str, recipe: str) -> Iterator:
    import dataclasses

    import tensorflow as tf

    import keras_resdense
    from keras_resdense.data.batches import training_batches
    from keras_resdense.data.plan import Plan

    data = keras_resdense.load_data(folder)
    row = dataclasses.replace(keras_resdense.RECIPES[recipe].recipe, batch_size=BATCH, crop="area", repeats=1)
    plan = Plan(recipe=row, size=(SIDE, SIDE), classes=len(data.class_names))
    return iter(training_batches(data.train, plan, tf.distribute.OneDeviceStrategy("/cpu:0")))


def bare(folder: str, antialias: bool) -> Iterator:
    """What one would write by hand, without order, keys, augmentation and checks."""
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


#: Every contestant: its environment, and how its batches are made of a folder.
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


def main() -> None:
    name, folder, count = sys.argv[1:]
    batches = LOADERS[name][1](folder)
    for _ in range(UNTIMED):
        next(batches)
    start, processor = time.perf_counter(), sum(os.times()[:4])
    for _ in range(int(count)):
        next(batches)
    seconds, processor = time.perf_counter() - start, sum(os.times()[:4]) - processor
    images = int(count) * BATCH
    print(json.dumps({"images_per_second": images / seconds, "processor_ms": 1000 * processor / images}))
    sys.stdout.flush()
    # DataLoader's workers need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
