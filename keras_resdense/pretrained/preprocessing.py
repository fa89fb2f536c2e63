"""Preprocessing for published weights, and the names of ImageNet's classes."""

from __future__ import annotations

import csv
import dataclasses
import functools
from importlib import resources
from typing import Any, Literal

import numpy as np

from keras_resdense.checks import pick
from keras_resdense.data.contract import ImageContract


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Converts RGB pixels 0–255 to a network's input: `(pixels - mean) / deviation` for each channel.

    Attributes:
        mean: Mean of each channel, 0–255, in the order of the network's channels.
        deviation: Standard deviation of each channel, 0–255.
        reversed_channels: Whether the network's channels are blue, green, red.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reversed_channels: bool = False

    def contract(self, size: tuple[int, int], channels: int = 3) -> ImageContract:
        """Returns an image contract that squashes images to a size."""
        mean, std = self.mean, self.deviation
        if channels != 3:
            mean, std = ((sum(values) / 3,) for values in (mean, std))
        order = "bgr" if self.reversed_channels and channels == 3 else "rgb"
        return ImageContract(size=size, channels=channels, order=order, mean=mean, std=std)


#: Preprocessings by keras.applications' names of its modes; "half" is timm's mean and deviation of 0.5.
PREPROCESSINGS = {
    "torch": Preprocessing(
        mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), deviation=(0.229 * 255, 0.224 * 255, 0.225 * 255)
    ),
    "half": Preprocessing(mean=(127.5, 127.5, 127.5), deviation=(127.5, 127.5, 127.5)),
    "tf": Preprocessing(mean=(127.5, 127.5, 127.5), deviation=(127.5, 127.5, 127.5)),
    "caffe": Preprocessing(mean=(103.939, 116.779, 123.68), reversed_channels=True),
}


def preprocess_input(
    images: Any, mode: str = "torch", data_format: Literal["channels_last", "channels_first"] | None = None
) -> Any:
    """Turns pixels into a network's input, like the functions of this name in keras.applications.

    Args:
        images: RGB pixels 0–255, `(…, height, width, 3)`: an array, or a tensor of TensorFlow or of Keras's backend,
            which may be symbolic.
        mode: Key of `PREPROCESSINGS`, such as `list_weights(variant)[0].preprocessing`.
        data_format: "channels_last", or "channels_first" for `(…, 3, height, width)`; default
            `keras.config.image_data_format()`.

    Returns:
        An array or tensor like `images`, float32.

    Raises:
        ValueError: If there is no such mode or format, or the channels are not three.
    """
    import keras

    rule = pick(PREPROCESSINGS, mode, "preprocessing")
    data_format = data_format or keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(f"data_format is {data_format!r}; it must be 'channels_last' or 'channels_first'.")
    axis, ones = (-1, ()) if data_format == "channels_last" else (-3, (1, 1))
    if len(images.shape) < 3 or images.shape[axis] != 3:
        raise ValueError(f"The images have shape {tuple(images.shape)}; axis {axis} must be RGB.")
    mean, deviation = (np.array(values, "float32").reshape(3, *ones) for values in (rule.mean, rule.deviation))
    if isinstance(images, np.ndarray):
        ordered = np.flip(images, axis) if rule.reversed_channels else images
        return (ordered.astype("float32") - mean) / deviation
    if type(images).__module__.startswith("tensorflow"):  # in tf.data, under every backend
        import tensorflow as tf

        ordered = tf.reverse(images, [axis]) if rule.reversed_channels else images
        return (tf.cast(ordered, "float32") - mean) / deviation
    ordered = keras.ops.flip(images, axis=axis) if rule.reversed_channels else images
    return (keras.ops.cast(ordered, "float32") - mean) / deviation


def add_preprocessing(x: Any, preprocessing: str, prefix: str = "") -> Any:
    """Adds layers that compute `preprocess_input`.

    Args:
        x: Keras tensor of pixels 0–255, `(batch, height, width, channels)`. For other channels than RGB, mean and
            deviation are averaged over the three.
        preprocessing: Key of `PREPROCESSINGS`.
        prefix: Put before the names of the layers.

    Returns:
        Keras tensor of the same shape.
    """
    import keras

    rule = pick(PREPROCESSINGS, preprocessing, "preprocessing")
    mean, deviation = np.array(rule.mean), np.array(rule.deviation)
    if x.shape[-1] != 3:
        mean, deviation = mean.mean(), deviation.mean()
    elif rule.reversed_channels:
        x = keras.ops.flip(x, axis=-1)
    scale, offset = 1 / deviation, -mean / deviation
    return keras.layers.Rescaling(scale.tolist(), offset.tolist(), name=f"{prefix}normalise")(x)


def decode_predictions(predictions: np.ndarray, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Returns the most probable of ImageNet's 1000 classes, as keras.applications does, but without a download.

    Args:
        predictions: `(batch, 1000)`.
        top: Number of classes to return for each image.

    Returns:
        For each image, WordNet's id, name and probability of each class, the most probable first.

    Raises:
        ValueError: If there are not 1000 classes.
    """
    if predictions.ndim != 2 or predictions.shape[1] != 1000:
        raise ValueError(f"The predictions have shape {predictions.shape}; (batch, 1000) is needed.")
    order = np.argsort(-predictions, axis=1)[:, :top]
    return [
        [(*imagenet_classes()[i], float(row[i])) for i in best] for row, best in zip(predictions, order, strict=True)
    ]


@functools.cache
def imagenet_classes() -> list[tuple[str, str]]:
    """Returns WordNet's id and first word for each class of ImageNet-1k."""
    with resources.files("keras_resdense.pretrained").joinpath("imagenet_classes.csv").open(encoding="utf-8") as file:
        return [(row["wordnet_id"], row["name"]) for row in csv.DictReader(file)]
