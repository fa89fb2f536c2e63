"""The functions that a SavedModel serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resdense.data.contract import ImageContract
from keras_resdense.data.graph_decoding import decode_in_graph
from keras_resdense.data.resizing import prepare


def freeze(model: keras.Model) -> Callable:
    """Returns a function from images to outputs whose graph holds the weights."""
    import tensorflow as tf

    kinds = model.trainable_variables, model.non_trainable_variables
    weights = [[variable.numpy() for variable in kind] for kind in kinds]

    # Both endpoints call the same graph, so the file has its constants only once.
    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)])
    def compute(images):
        return model.stateless_call(*tf.nest.map_structure(tf.constant, weights), images, training=False)[0]

    return compute


def pixels_endpoint(model: keras.Model, compute: Callable, batch: int | None = None, dtype: str | None = None) -> Any:
    """Returns a function from images to outputs, and its signature."""
    import tensorflow as tf

    def serve(images):
        return {"outputs": compute(tf.cast(images, model.inputs[0].dtype))}

    spec = tf.TensorSpec((batch, *model.input_shape[1:]), dtype or model.inputs[0].dtype, name="images")
    return serve, [spec]


def files_endpoint(model: keras.Model, compute: Callable, contract: ImageContract, strict: bool) -> Any:
    """Returns a function from encoded images to outputs, and its signature.

    Args:
        model: Model with 1 or 3 channels.
        compute: Function from a batch of images to outputs.
        contract: How an image becomes the model's input.
        strict: Whether a file that is not an image makes the entire batch fail; if not, `valid` marks such files.
    """
    import tensorflow as tf

    pixels = tf.TensorSpec((*contract.size, contract.channels), tf.float32)

    def read(encoded):
        return prepare(decode_in_graph(encoded), contract)

    def read_or_blank(encoded):
        # A graph cannot catch errors, but a data set can skip elements that fail.
        image = tf.data.Dataset.from_tensors(encoded).map(lambda file: (read(file), True)).ignore_errors()
        blank = tf.data.Dataset.from_tensors((tf.zeros(pixels.shape), False))
        return image.concatenate(blank).take(1).get_single_element()

    def serve(encoded):
        images = tf.map_fn(read, encoded, fn_output_signature=pixels)
        return {"outputs": compute(tf.cast(images, model.inputs[0].dtype))}

    def serve_valid(encoded):
        signature = pixels, tf.TensorSpec((), tf.bool)
        images, valid = tf.map_fn(read_or_blank, encoded, fn_output_signature=signature)
        outputs = compute(tf.cast(images, model.inputs[0].dtype))
        # NaN has no largest class, for clients that ignore `valid`.
        known = tf.reshape(valid, (-1, *[1] * (outputs.shape.rank - 1)))
        return {"outputs": tf.where(known, outputs, np.nan), "valid": valid}

    return serve if strict else serve_valid, [tf.TensorSpec((None,), tf.string, name="encoded")]


def write_endpoints(endpoints: dict[str, Any], path: Path) -> None:
    # The endpoints' variables are saved anyway; tracking the model would save them twice.
    archive = keras.export.ExportArchive()
    for name, (serve, signature) in endpoints.items():
        archive.add_endpoint(name, serve, input_signature=signature)
    archive.write_out(path, verbose=False)
