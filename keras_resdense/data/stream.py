"""Reads image files into batches while a network computes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from keras_resdense.data.checking import decode_fast, read_file
from keras_resdense.data.contract import ImageContract
from keras_resdense.data.resizing import check_channels, normalise, prepare_outside_a_graph
from keras_resdense.data.tfdata import mapped, prefetch, without_autograph


def stream(files: Sequence[str], contract: ImageContract, batch: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Reads and prepares files with one thread per core, with only a few batches in memory.

    Args:
        files: Paths of images.
        contract: How an image becomes the network's input.
        batch: Largest number of images in a batch.

    Yields:
        A batch `(images, height, width, channels)` float32, and for each image what is wrong with its file, or "". The
        image of a bad file is black.
    """
    import tensorflow as tf

    check_channels(3, contract.channels)
    shape = *contract.size, contract.channels

    def read(path: bytes) -> tuple[np.ndarray, bytes]:
        try:
            return prepare_outside_a_graph(decode_fast(read_file(path)), contract), b""
        except (ValueError, OSError) as error:
            return np.zeros(shape, "uint8"), str(error).encode("utf-8", "surrogateescape")

    def load(path):
        pixels, fault = tf.numpy_function(read, [path], (tf.uint8, tf.string), stateful=False)
        return tf.ensure_shape(pixels, shape), tf.ensure_shape(fault, ())

    names = tf.constant(np.array([os.fsencode(file) for file in files], object))
    images = mapped(tf.data.Dataset.from_tensor_slices(names), load).batch(batch)
    # In parallel it would be no faster, and more batches would be in memory.
    images = images.map(without_autograph(lambda pixels, faults: (normalise(pixels, contract), faults)))
    for prepared, faults in prefetch(images).as_numpy_iterator():
        yield prepared, [fault.decode("utf-8", "surrogateescape") for fault in faults]
