"""Builds the network of a recipe for a data set."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_resdense.data.batches import class_counts, take_images
from keras_resdense.data.examples import ImageData
from keras_resdense.data.plan import ExportImages, Plan
from keras_resdense.exporting.quantised_training import quantisation_aware
from keras_resdense.networks import zoo
from keras_resdense.training.recipes import Recipe

if TYPE_CHECKING:
    from keras_resdense.networks.layers import Network


def network(recipe: Recipe, memory_efficient: bool = False) -> Network:
    """Returns the row of a recipe's network with the recipe's dropout, drop path and weight decay.

    Args:
        recipe: Recipe that names the network.
        memory_efficient: Whether training recomputes feature maps, see `ResNet` and `DenseStyle`.

    Raises:
        ValueError: If there is no such variant, or it lacks one of these fields.
    """
    row = zoo.get_row(recipe.model)
    wanted = {field: getattr(recipe, field) for field in ("drop_path", "dropout") if getattr(recipe, field)}
    wanted |= {"memory_efficient": True} if memory_efficient else {}
    for field in wanted:
        if not hasattr(row, field):
            raise ValueError(f"{recipe.model} is a {type(row).__name__}, which has no {field}: leave it out.")
    # The other optimisers decay weights themselves.
    decay = recipe.weight_decay if recipe.optimizer == "sgd" else 0.0
    return dataclasses.replace(row, weight_decay=decay, **wanted)


def build_classifier(row: Network, plan: Plan, normalisation: Any, channels: int) -> keras.Model:
    """Builds a recipe's network for pixels 0–255.

    Args:
        row: Row of the network.
        plan: Plan with the recipe and the size.
        normalisation: Mean and standard deviation of each channel.
        channels: Channels of an image.
    """
    recipe = plan.recipe
    images = keras.Input((*plan.size, channels), name="images")
    mean, deviation = map(np.array, normalisation)
    x = keras.layers.Rescaling((1 / deviation).tolist(), (-mean / deviation).tolist(), name="normalise")(images)
    return zoo.create_model(
        row,
        weights=recipe.weights or None,
        input_tensor=x,
        classes=plan.classes,
        classifier_activation="sigmoid" if recipe.loss == "binary" else "softmax",
        name=recipe.model,
    )


def quantised(model: keras.Model, data: ImageData, plan: Plan) -> keras.Model:
    """Makes a classifier quantisation-aware, with ranges measured on the training images that exports calibrate on."""
    images, _ = take_images(data.train, plan.contract(model.input_shape[-1]), ExportImages.calibration_images)
    return quantisation_aware(model, images, weight_bits=4 if plan.recipe.quantise == "int4" else 8)


def plan_of(recipe: Recipe, data: ImageData, row: Network, seed: int) -> Plan:
    """Returns the plan of a training, with weights of the classes if the recipe balances them."""
    size, classes, weights = image_size_of(recipe, data, row, recipe.image_size), len(data.class_names), None
    if recipe.balance:
        # The mean weight of an image is 1. Weights without the root cost accuracy in all classes.
        counts = np.maximum(class_counts(data.train, classes), 1)
        weights = tuple((counts.sum() / np.sqrt(counts).sum() / np.sqrt(counts)).tolist())
    return Plan(recipe=recipe, size=size, classes=classes, seed=seed, class_weights=weights)


def image_size_of(recipe: Recipe, data: ImageData, row: Network, wanted: int) -> tuple[int, int]:
    """Returns the height and width of the network's input, in pixels.

    Args:
        recipe: Recipe, whose `image_size` is used if nothing else is wanted.
        data: Data set, whose images set the size if the recipe does not.
        row: Row of the network, which was published for the size that is used if the images differ in size.
        wanted: Side in pixels; 0 for the recipe's.
    """
    side = wanted or recipe.image_size
    if side:
        return side, side
    height, width, _ = data.image_shape
    return (height, width) if height and width else (row.stem.image_size,) * 2
