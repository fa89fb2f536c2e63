"""The model that every opened file becomes, computed by a runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_resdense.data.contract import ImageContract
from keras_resdense.networks.model import BATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceModel:
    """A model that a runtime computes: a function from images to outputs.

    It has the attributes of a Keras model that inference needs, so `keras_resdense.transform` takes it, too.

    Attributes:
        compute: Function from one batch of `dtype` to outputs `(batch, …)`, float32.
        input_shape: `(None, height, width, channels)`; a side that varies is None.
        output_shape: `(None, …)`; a side that varies is None.
        dtype: Type of the input.
        most: Largest number of images that `compute` takes; None for any.
        runtime: Name of the runtime, a key of `RUNTIMES`, or "numpy" for Core ML, which runs on Apple's systems only.
        precision: "float32", or "bfloat16" if it was asked for. Quantised files keep their own types.
        path: File or folder that it was opened from; None if it was built.
        image_contract: How an image becomes the input; None if unknown.
        class_names: Names of the classes in the order of their indices; None if unknown.
    """

    compute: Callable[[np.ndarray], np.ndarray]
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    dtype: str = "float32"
    most: int | None = None
    runtime: str = "tensorflow"
    precision: str = "float32"
    path: Path | None = None
    image_contract: ImageContract | None = None
    class_names: tuple[str, ...] | None = None

    def __call__(self, images: Any) -> np.ndarray:
        """Computes all images in one batch, or in as few as the file allows.

        Args:
            images: Images `(images, height, width, channels)`.

        Returns:
            Outputs `(images, …)`, float32.

        Raises:
            ValueError: If the images have another shape, or the file is damaged.
        """
        return self._computed(images, self.most)

    def predict(self, images: Any, batch_size: int = BATCH) -> np.ndarray:
        """Computes images in batches.

        Args:
            images: As in a call.
            batch_size: Images in a batch. The last batch may be smaller.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        return self._computed(images, min(batch_size, self.most or batch_size))

    def _computed(self, images: Any, most: int | None) -> np.ndarray:
        images = np.asarray(images, self.dtype)
        allowed = self.input_shape[1:]
        sides = images.shape[1:]
        if len(sides) != len(allowed) or any(side not in (None, got) for side, got in zip(allowed, sides, strict=True)):
            hint = " A single image needs a batch axis: image[None]." if len(images.shape) == len(allowed) else ""
            raise ValueError(f"images has shape {images.shape}; the model takes (images, *{allowed}).{hint}")
        if not len(images):
            return np.zeros((0, *(side or 0 for side in self.output_shape[1:])), "float32")
        if most is None or len(images) <= most:
            return self.compute(images)
        return np.concatenate([self.compute(images[start : start + most]) for start in range(0, len(images), most)])
