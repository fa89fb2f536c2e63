"""A recipe for images of one's own, chosen from what they are: how many, of how many classes, how large."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from keras_resdense.data.batches import class_counts
from keras_resdense.data.examples import ImageData
from keras_resdense.data.tfdata import prefetch
from keras_resdense.training.recipes import Recipe, get_recipe

#: Images whose size is looked at.
SAMPLE = 200
#: Updates of the weights that a training should have, within its bounds of epochs.
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 1500, 15, 100
#: Batches that an epoch should have at least.
BATCHES = 30
#: Sides of images, in pixels: below the first, a CIFAR network reads them as they are; the second is the largest that a
#: training from scratch is given by itself.
SMALL, LARGEST = 40, 128
#: How many times as many images the largest class may have as the smallest before classes are balanced.
BALANCED = 2.0


def choose(data: ImageData, weights: str = "") -> tuple[Recipe, str]:
    """Chooses a recipe for a folder of images.

    Args:
        data: The images.
        weights: Published weights to start from, as `Recipe.weights`; "" to train from scratch.

    Returns:
        The recipe, a row of `RECIPES` adapted to the images, and a paragraph that says what was chosen and how to
        change it.
    """
    count, counts = data.train.count, class_counts(data.train, len(data.class_names))
    side = _median_side(data)
    batch = int(2 ** math.floor(math.log2(min(max(count / BATCHES, 8), 128, count))))
    epochs = min(max(round(STEPS * batch / count), LEAST_EPOCHS), MOST_EPOCHS)
    row = "small_folder_pretrained" if weights else "small_folder"
    balance = bool(counts.max() > BALANCED * counts.min())
    # Adam's rate does not grow with the batch as SGD's does.
    rate_batch = {} if weights else {"learning_rate_batch": batch}
    chosen = rate_batch | {"batch_size": batch, "epochs": epochs, "weights": weights, "balance": balance}
    recipe = dataclasses.replace(get_recipe(row), **chosen | ({} if weights else _from_scratch(side, data)))
    return recipe, _explain(row, recipe, counts, side, data)


def _from_scratch(side: int, data: ImageData) -> dict:
    """Returns the fields that follow from the size of the images."""
    uniform = None not in data.image_shape
    if side <= SMALL:
        size = 0 if uniform else max(8, side)
        # Small images are often letters and digits, which mirroring spoils.
        return {"model": "resnet20", "image_size": size, "crop": "none", "padding": max(1, side // 14), "flip": False}
    return {"image_size": min(LARGEST, side // 32 * 32)}


def _median_side(data: ImageData) -> int:
    """Returns the median shorter side of the images, in pixels."""
    sizes = prefetch(data.train.order((0, 0)).take(SAMPLE).map(lambda handle: data.train.open(handle).shape[:2]))
    return int(np.median([size.min() for size in sizes.as_numpy_iterator()]))


def _explain(row: str, recipe: Recipe, counts: np.ndarray, side: int, data: ImageData) -> str:
    start = f"from the weights {recipe.weights!r}" if recipe.weights else "from scratch"
    size = recipe.image_size or data.image_shape[0]
    shape = "a random crop of each" if recipe.crop != "none" else "the whole of each"
    lines = [
        f"{counts.sum():,} images to train on, {len(counts)} classes of {counts.min():,} to {counts.max():,} images, "
        f"shorter side {side} pixels in the median.",
        f"Chosen: recipe {row}, {recipe.model} {start}, {size} pixels, {shape}"
        f"{', mirrored at random' if recipe.flip else ''}, batches of {recipe.batch_size}, {recipe.epochs} epochs"
        f"{', rare classes weigh more' if recipe.balance else ''}.",
        "Change it with options such as --model, --image-size, --epochs, --no-flip (where left and right matter) or "
        "--weights imagenet; --recipe takes another recipe.",
    ]
    return "\n".join(lines)
