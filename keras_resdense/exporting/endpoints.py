"""The functions that a SavedModel serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras

from keras_resdense.data.contract import ImageContract
from keras_resdense.data.graph_decoding import decode_in_graph
from keras_resdense.data.resizing import prepare


def freeze(model: keras.Model) -> Callable:
    """Returns a function from images to outputs whose graph holds the weights."""
    import tensorflow as tf

    kinds = model.trainable_variables, model.non_trainable_variables
    weights = [[variable.numpy() for variable in kind] for kind in kinds]

    # Both endpoints call the one graph that a signature allows, and the file has its constants once.
    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)])
    def compute(images):
        return model.stateless_call(*tf.nest.map_structure(tf.constant, weights), images, training=False)[0]

    return compute


def pixels_endpoint(model: keras.Model, compute: Callable, batch: int | None = None, dtype: str | None = None):
    """Returns a function from images to outputs, and its signature."""
    import tensorflow as tf

    def serve(images):
        return {"outputs": compute(tf.cast(images, model.inputs[0].dtype))}

    spec = tf.TensorSpec((batch, *model.input_shape[1:]), dtype or model.inputs[0].dtype, name="images")
    return serve, [spec]


def files_endpoint(model: keras.Model, compute: Callable):
    """Returns a function from encoded images to outputs, and its signature."""
    import tensorflow as tf

    _, height, width, channels = model.input_shape
    contract = getattr(model, "image_contract", None) or ImageContract(size=(height, width), channels=channels)

    def serve(encoded):
        spec = tf.TensorSpec((*contract.size, channels), tf.float32)
        images = tf.map_fn(lambda file: prepare(decode_in_graph(file), contract), encoded, fn_output_signature=spec)
        return {"outputs": compute(tf.cast(images, model.inputs[0].dtype))}

    return serve, [tf.TensorSpec((None,), tf.string, name="encoded")]


def write_endpoints(endpoints: dict, path: Path) -> None:
    # The variables of the endpoints are found by themselves; a tracked model's are saved a second time.
    archive = keras.export.ExportArchive()
    for name, (serve, signature) in endpoints.items():
        archive.add_endpoint(name, serve, input_signature=signature)
    archive.write_out(path, verbose=False)
