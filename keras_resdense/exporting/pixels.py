"""Wraps networks with other inputs, so that they take pixels 0–255."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from keras_resdense.data.contract import ImageContract


def takes_pixels(contract: ImageContract | None) -> bool:
    """Returns whether a network takes RGB pixels 0–255 by its contract."""
    return contract is None or (contract.takes_pixels and contract.order == "rgb")


def of_pixels(contract: ImageContract | None) -> ImageContract | None:
    """Returns the contract of the network that `from_pixels` returns."""
    if takes_pixels(contract):
        return contract
    return dataclasses.replace(contract, order="rgb", mean=(0.0,), std=(1.0,))


def to_pixels(images: np.ndarray, contract: ImageContract | None) -> np.ndarray:
    """Returns the RGB pixels 0–255 from which a contract made a network's input.

    Raises:
        ValueError: If the images do not fit the contract.
    """
    if takes_pixels(contract):
        return images
    pixels = images * np.array(contract.std) + np.array(contract.mean)
    pixels = pixels[..., ::-1] if contract.order == "bgr" else pixels
    if not -0.5 <= pixels.min() <= pixels.max() <= 255.5:
        raise ValueError(
            f"By the model's image contract, the images have pixels from {pixels.min():g} to {pixels.max():g}, but "
            "pixels must be from 0 to 255: prepare the images with keras_resdense.transform(model)."
        )
    nearest = pixels.round()
    # float32 leaves small errors in integers.
    return np.where(abs(pixels - nearest) < 1e-3, nearest, pixels).clip(0, 255).astype("float32")


def from_pixels(model: keras.Model, contract: ImageContract | None) -> keras.Model:
    """Returns a model that first normalises RGB pixels 0–255 by a convolution, as the contract says."""
    if takes_pixels(contract):
        return model
    channels = contract.channels
    mean, std = (np.broadcast_to(values, channels) for values in (contract.mean, contract.std))
    order = np.eye(channels)[::-1] if contract.order == "bgr" else np.eye(channels)
    images = keras.Input(model.input_shape[1:], name="images")
    normalise = keras.layers.Conv2D(channels, 1, name="normalise", dtype="float32")
    outputs = model(normalise(images))
    normalise.set_weights([(order / std)[None, None], -mean / std])
    return keras.Model(images, outputs, name=model.name)


def are_pixels(images: np.ndarray) -> bool:
    """Returns whether numbers are in 0–255 and not only in 0–1 or around 0."""
    return bool(images.min() >= 0 and 1 < images.max() <= 255)
