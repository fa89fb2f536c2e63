"""Evaluation of a model on held-out images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import keras
import numpy as np

from keras_resdense.data.batches import evaluation_batches
from keras_resdense.data.contract import ImageContract
from keras_resdense.data.examples import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        accuracy: Share of the images that are classified correctly.
        loss: Mean cross-entropy.
        confusion: Confusion matrix `(classes, classes)`, with a row for each true class.
    """

    accuracy: float
    loss: float
    confusion: np.ndarray


def evaluate(
    probabilities_of: Callable[[np.ndarray], np.ndarray], examples: Examples, contract: ImageContract, classes: int
) -> Evaluation:
    """Evaluates a model on all examples.

    Args:
        probabilities_of: Function from images `(batch, height, width, channels)`, float32, prepared by the contract,
            to probabilities `(batch, classes)`.
        examples: Examples to evaluate on.
        contract: How an image is prepared.
        classes: Number of classes of the examples.

    Raises:
        ValueError: If the model has another number of classes.
    """
    batches, steps = evaluation_batches(examples, contract, classes)
    confusion, loss = np.zeros((classes, classes), int), 0.0
    for images, targets, weights in itertools.islice(batches.as_numpy_iterator(), steps):
        probabilities, labels = probabilities_of(images[weights > 0]), targets[weights > 0].argmax(-1)
        if probabilities.shape[-1] != classes:
            raise ValueError(f"The model knows {probabilities.shape[-1]} classes, the images have {classes}.")
        np.add.at(confusion, (labels, probabilities.argmax(-1)), 1)
        loss -= float(np.log(np.maximum(probabilities[np.arange(len(labels)), labels], keras.config.epsilon())).sum())
    count = confusion.sum()
    return Evaluation(accuracy=float(confusion.trace() / count), loss=loss / count, confusion=confusion)
