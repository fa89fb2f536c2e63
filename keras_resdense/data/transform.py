"""Turns files, encoded bytes or arrays into a batch by an image contract."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_resdense.data.contract import ImageContract
from keras_resdense.data.decoding import decode_image
from keras_resdense.data.resizing import prepare


@dataclasses.dataclass(frozen=True)
class Transform:
    """A function from images to a batch; make one with `keras_resdense.transform`.

    Attributes:
        contract: How an image becomes a network's input.
    """

    contract: ImageContract

    def __call__(self, images: Any) -> np.ndarray:
        """Prepares images.

        Args:
            images: One image, or any iterable of images. An image is the path or the content of a file, or an array of
                pixels 0–255: `(height, width, 3)` in RGB, or `(height, width, 1)` or `(height, width)` in grey. An
                array `(images, height, width, channels)` holds many images.

        Returns:
            Batch `(images, height, width, channels)` float32.

        Raises:
            ValueError: If there are no images, a file is not an image, or an array does not hold pixels 0–255.
            OSError: If a file cannot be read.
        """
        single = isinstance(images, str | bytes | os.PathLike) or getattr(images, "ndim", 0) in (2, 3)
        many: Iterable[Any] = [images] if single else images
        batch = [prepare(load_pixels(image), self.contract).numpy() for image in many]
        if not batch:
            raise ValueError("There are no images: pass files, encoded bytes or arrays of pixels 0–255.")
        return np.stack(batch)


def load_pixels(image: Any) -> np.ndarray:
    """Returns the pixels of an image, `(height, width, channels)`, as `Transform` takes it.

    Raises:
        ValueError: If the file is not an image, or an array does not hold pixels 0–255. The error names the file.
        OSError: If the file cannot be read.
    """
    if isinstance(image, bytes):
        return decode_image(image)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            return decode_image(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise ValueError(
            f"An array has shape {np.shape(image)}; it must be (height, width, 3) in RGB, or (height, width, 1) or "
            "(height, width) in grey."
        )
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.number) or not 0 <= pixels.min() <= pixels.max() <= 255:
        raise ValueError(f"An array of {pixels.dtype} goes from {pixels.min()} to {pixels.max()}; pixels are 0–255.")
    if np.issubdtype(pixels.dtype, np.floating) and 0 < pixels.max() <= 1:
        raise ValueError(
            f"An array goes from {pixels.min():g} to {pixels.max():g}; multiply it by 255 for pixels 0–255."
        )
    return pixels.astype("float32")
