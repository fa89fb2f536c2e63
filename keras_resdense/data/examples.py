"""Images and their classes, in an order that can be drawn anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_resdense.data.crops import part_of

#: Share of the images held out where a data set has no split of its own.
HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An image, which is decoded as far as it is asked for, and its class.

    Attributes:
        shape: Height, width and channels `(3,)` int32.
        part: From a window, see `keras_resdense.data.crops.View`, to its pixels `(height, width, channels)` uint8.
        label: Number of the class.
        number: Number of the example, the same in every epoch.
    """

    shape: Any
    part: Callable[[Any], Any]
    label: Any
    number: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Images and their classes, in an order that can be drawn anew.

    Attributes:
        count: How many there are.
        order: From a key, two whole numbers, to a `tf.data.Dataset` of handles in an order that depends on
            the key alone; from None to their own order.
        open: From a handle to its `Example`.
        files: Number of files that the examples are read from one after the other; 0 where they are not.
        part: From a key, the number of a worker and the number of workers to a `tf.data.Dataset` of the handles in
            the files that are this worker's then; None where there are no such files.
        class_counts: How many there are of each class, `(classes,)`; None where they must be read to tell.
    """

    count: int
    order: Callable[[Any], Any]
    open: Callable[[Any], Example]
    files: int = 0
    part: Callable[[Any, int, int], Any] | None = None
    class_counts: np.ndarray | None = None

    def read(self, handle: Any) -> tuple[Any, Any, Any]:
        """Returns an image `(height, width, channels)` uint8, its class and its number."""
        example = self.open(handle)
        return example.part(None), example.label, example.number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set.

    Attributes:
        name: What it was loaded by.
        train: Examples to learn from.
        test: Examples held out.
        class_names: In the order of the classes' numbers.
        image_shape: `(height, width, channels)`; height and width are None where sizes differ.
        contents: What it holds and how that is split, each fact under its name, to compare with another time or
            another machine.
        recheck: Says what is wrong with its files by now.
        write_split: Writes to a file which image is in which part, for `load_data`; None where that cannot change.
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
    """Makes examples of what fits in memory.

    Args:
        handles: Pixels, encoded images or paths, `(examples, ...)`.
        labels: Their classes, `(examples,)`.
        opened: From one handle to the shape and the part of an `Example`; None if handles are pixels, of which
            `read` takes many at once, too.
    """
    import tensorflow as tf

    counts = np.bincount(np.asarray(labels).astype("int64"))
    with tf.device("CPU:0"):
        handles, labels = (tf.nest.map_structure(tf.convert_to_tensor, tensors) for tensors in (handles, labels))
    labels = tf.cast(labels, tf.int64)

    def order(key):
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

    return Examples(count=len(labels), order=order, open=open_numbered, class_counts=counts)


def split_stratified(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples so that each class gives the same share to both sides, the same ones always.

    Args:
        labels: Classes `(examples,)`.

    Returns:
        Numbers of the examples to train on, and of the `HELD_OUT` share to test on, or of one example of each class
        where that is more.

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
            f"{len(labels)} images of {classes} classes cannot be split into training and test images "
            f"({error}): give every class more images, or name the two splits yourself."
        ) from error
    return np.sort(train), np.sort(test)
