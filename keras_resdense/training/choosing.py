"""Chooses a recipe for a folder of images by their number, classes and sizes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from keras_resdense.data.batches import class_counts
from keras_resdense.data.examples import ImageData
from keras_resdense.data.keeping import kept_bytes
from keras_resdense.data.tfdata import mapped, prefetch
from keras_resdense.training.recipes import Recipe, get_recipe

#: Number of images whose sizes are measured.
SAMPLE = 200
#: Number of steps of a training, and the least and most epochs.
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 500, 6, 50
#: Least number of batches in an epoch, and bounds of the batch size. A step on fewer images takes nearly as long. For
#: photos, whose network has more weights to update, the second number is the least.
BATCHES, LEAST_BATCH, LEAST_PHOTOS, MOST_BATCH = 30, 16, 32, 128
#: Sides of images, in pixels: up to the first, a CIFAR network takes them unchanged; the second is the largest size for
#: training from scratch.
SMALL, LARGEST = 40, 64
#: Largest ratio between the images of the largest and the smallest class without balancing.
BALANCED = 2.0
#: Bytes that decoded images may take in memory.
KEPT = 2**30


def choose(data: ImageData, weights: str = "") -> tuple[Recipe, str]:
    """Chooses a recipe for a folder of images.

    Args:
        data: The images.
        weights: Published weights to start from, as `Recipe.weights`; "" to train from scratch.

    Returns:
        The recipe, which is a row of `RECIPES` adapted to the images, and a description of the images.
    """
    count, counts = data.train.count, class_counts(data.train, len(data.class_names))
    side = _median_side(data)
    least = LEAST_BATCH if side <= SMALL else LEAST_PHOTOS
    batch = int(2 ** math.floor(math.log2(min(max(count / BATCHES, least), MOST_BATCH, count))))
    row = "small_folder_pretrained" if weights else "small_folder"
    # Published weights need fewer epochs.
    most = get_recipe(row).epochs if weights else MOST_EPOCHS
    epochs = min(max(round(STEPS * batch / count), LEAST_EPOCHS), most)
    chosen = {"batch_size": batch, "epochs": epochs, "weights": weights}
    chosen["balance"] = bool(counts.max() > BALANCED * counts.min())
    if not weights:
        # Adam's rate does not grow with the batch as SGD's does.
        chosen |= {"learning_rate_batch": batch} | _from_scratch(side, data)
    recipe = dataclasses.replace(get_recipe(row), **chosen)
    largest = kept_bytes((recipe.image_size or side,) * 2, data.image_shape[2])
    recipe = dataclasses.replace(recipe, keep=count * largest <= KEPT)
    return recipe, _found(counts, side, data)


def _from_scratch(side: int, data: ImageData) -> dict:
    """Returns the fields that follow from the size of the images."""
    uniform = None not in data.image_shape
    if side <= SMALL:
        size = 0 if uniform else max(8, side)
        # Small images are often letters or digits, which must not be flipped.
        moved = {"padding": max(1, side // 14), "flip": False}
        return {"model": "resnet20", "learning_rate": 2e-3, "image_size": size} | moved
    size = min(LARGEST, side // 32 * 32)
    return {"image_size": size, "padding": size // 10}


def _median_side(data: ImageData) -> int:
    """Returns the median shorter side of the images, in pixels."""
    sample = data.train.handles((0, 0)).take(SAMPLE)
    sizes = prefetch(mapped(sample, lambda handle: data.train.open(handle).shape[:2]))
    return int(np.median([size.min() for size in sizes.as_numpy_iterator()]))


def _found(counts: np.ndarray, side: int, data: ImageData) -> str:
    least, most = f"{counts.min():,}", f"{counts.max():,}"
    each = f"{least} images each" if least == most else f"{least} to {most} images"
    return (
        f"Found {counts.sum():,} images to train on and {data.test.count:,} held out, in {len(counts)} classes of"
        f" {each}.\nThe shorter side of a typical image has {side} pixels."
    )


def explain(recipe: Recipe) -> str:
    """Describes a chosen recipe, with its changes, in plain words."""
    start = f"from the weights {recipe.weights!r}" if recipe.weights else "from scratch"
    size = f" of {recipe.image_size}×{recipe.image_size} pixels" if recipe.image_size else " as they are"
    lines = [
        f"Chosen: {recipe.model} {start}, images{size}, batches of {recipe.batch_size}, {recipe.epochs} epochs.",
        "The network sees a random part of each image."
        if recipe.crop != "none"
        else f"The network sees whole images, moved by up to {recipe.padding} pixel{'s' * (recipe.padding > 1)}.",
        "It also sees mirror images (--no-flip where left and right matter)."
        if recipe.flip
        else "It sees no mirror images (--flip where left and right do not matter).",
    ]
    if recipe.balance:
        lines.append("Rare classes count for more (--no-balance).")
    lines.append("Options change each choice, such as --model, --image-size or --epochs.")
    if not recipe.weights and recipe.flip:
        lines.append("For photos, --weights imagenet usually helps most: it starts from published weights.")
    return "\n".join(lines)
