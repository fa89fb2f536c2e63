"""Images with their classes, in an order that can be shuffled for each epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_resdense.data.crops import part_of

#: Share of held-out images if a data set has no split.
HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An image, which is decoded only where it is needed, and its class.

    Attributes:
        shape: Height, width and channels `(3,)` int32.
        part: Function from a window, see `keras_resdense.data.crops.View`, to its pixels
            `(height, width, channels)` uint8.
        label: Number of the class.
        number: Number of the example, the same in every epoch.
    """

    shape: Any
    part: Callable[[Any], Any]
    label: Any
    number: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Images with their classes, in an order that can be shuffled for each epoch.

    Attributes:
        count: Number of examples.
        handles: Function from a key (two whole numbers) to a `tf.data.Dataset` of handles in an order that depends on
            the key only. None as the key gives the original order.
        open: Function from a handle to its `Example`.
        files: Number of files that the examples are streamed from; 0 if they are not streamed.
        worker_handles: Function from a key, the number of a worker and the number of workers to a `tf.data.Dataset` of
            the handles in this worker's files; None if the examples are not streamed.
        class_counts: Number of examples of each class `(classes,)`; None if unknown without reading them.
    """

    count: int
    handles: Callable[[Any], Any]
    open: Callable[[Any], Example]
    files: int = 0
    worker_handles: Callable[[Any, int, int], Any] | None = None
    class_counts: np.ndarray | None = None

    def read(self, handle: Any) -> tuple[Any, Any, Any]:
        """Returns an image `(height, width, channels)` uint8, its class and its number."""
        example = self.open(handle)
        return example.part(None), example.label, example.number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set.

    Attributes:
        name: Name of the data set or folder.
        train: Training examples.
        test: Held-out examples.
        class_names: Names of the classes in the order of their indices.
        image_shape: `(height, width, channels)`; height and width are None if they vary.
        contents: Facts about its images and their split, by name. They must be the same on all workers, and when a
            run resumes.
        recheck: Function that lists files that have changed or can no longer be read.
        write_split: Function that writes the split to a file for `load_data`; None if the split cannot change.
    """

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    contents: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recheck: Callable[[], list[str]] = list
    write_split: Callable[[Path], None] | None = None


def in_memory(handles: Any, labels: np.ndarray, opened: Callable[[Any], tuple[Any, Any]] | None = None) -> Examples:
    """Makes examples of arrays in memory.

    Args:
        handles: Pixels, encoded images or paths, `(examples, ...)`.
        labels: Their classes `(examples,)`.
        opened: Function from one handle to the shape and the part of an `Example`; None if handles are pixels.
    """
    import tensorflow as tf

    counts = np.bincount(np.asarray(labels).astype("int64"))
    with tf.device("CPU:0"):
        handles, labels = (tf.nest.map_structure(tf.convert_to_tensor, tensors) for tensors in (handles, labels))
    labels = tf.cast(labels, tf.int64)

    def shuffled(key):
        numbers = tf.range(len(labels), dtype=tf.int64)
        if key is not None:
            numbers = tf.random.experimental.stateless_shuffle(numbers, key)
        return tf.data.Dataset.from_tensor_slices(numbers)

    def pixels(image):
        return tf.shape(image)[-3:], part_of(image)

    def open_numbered(number):
        handle = tf.nest.map_structure(lambda tensor: tf.gather(tensor, number), handles)
        shape, part = (opened or pixels)(handle)
        return Example(shape=shape, part=part, label=tf.gather(labels, number), number=number)

    return Examples(count=len(labels), handles=shuffled, open=open_numbered, class_counts=counts)


def split_stratified(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples with the same share of each class on both sides. The split is always the same.

    Args:
        labels: Classes `(examples,)`.

    Returns:
        Numbers of the training examples and of the held-out examples. These are the `HELD_OUT` share or, if that is
        more, one example per class.

    Raises:
        ValueError: If a class has fewer than two examples.
    """
    from sklearn.model_selection import train_test_split

    classes = len(np.unique(labels))
    held_out = HELD_OUT if HELD_OUT * len(labels) >= classes else classes
    try:
        train, test = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=0)
    except ValueError as error:
        raise ValueError(
            f"{len(labels)} images of {classes} classes cannot be split into training and test images ({error}): add "
            "images to every class, or sort them into the folders train and val yourself."
        ) from error
    return np.sort(train), np.sort(test)
