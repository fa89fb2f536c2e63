"""Images to train on: the embedded digits, or any image classification data set of TFDS."""

from __future__ import annotations

import dataclasses

import numpy as np

#: Held out of the 1,797 digits, a fifth, the same ones always.
HELD_OUT_DIGITS = 360


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set in memory.

    Attributes:
        name: What it was loaded by.
        train_images: Pixels 0–255, `(images, height, width, channels)`, uint8.
        train_labels: Class of each, `(images,)`, from 0.
        test_images: Those held out, likewise.
        test_labels: Class of each.
        class_names: In the order of the labels.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def load_data(name: str = "digits", data_dir: str | None = None) -> ImageData:
    """Loads a data set.

    Args:
        name: "digits", scikit-learn's handwritten digits of 8×8 pixels, which need no network; or the
            name of a data set of TFDS whose images have one size and fit in memory.
        data_dir: Folder where TFDS keeps its data sets; default TFDS's own.

    Raises:
        ValueError: If the data set is unknown or its images are not all of one size.
    """
    return _digits() if name == "digits" else _tfds(name, data_dir)


def _digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.round(digits.images[..., None] * (255 / 16)).astype("uint8")
    train_images, test_images, train_labels, test_labels = train_test_split(
        pixels, digits.target, test_size=HELD_OUT_DIGITS, stratify=digits.target, random_state=0
    )
    return ImageData(
        name="digits",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(map(str, digits.target_names)),
    )


def _tfds(name: str, data_dir: str | None) -> ImageData:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(f"There is no data set {name!r}: 'digits' and the names of TFDS are allowed.") from error
    features = builder.info.features
    if not {"image", "label"} <= features.keys() or None in features["image"].shape:
        raise ValueError(f"{name} does not hold images of one size with one label each.")
    builder.download_and_prepare()
    held_out = "test" if "test" in builder.info.splits else "validation"
    train, test = (
        tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1)) for split in ("train", held_out)
    )
    return ImageData(
        name=name,
        train_images=train["image"],
        train_labels=train["label"],
        test_images=test["image"],
        test_labels=test["label"],
        class_names=tuple(features["label"].names),
    )
