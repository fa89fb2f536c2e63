"""The model that builders return, Keras's own but for how `predict` reads arrays, and how it is opened again."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resdense.data.contract import ImageContract, as_files, attach, attached
from keras_resdense.data.tfdata import prefetch
from keras_resdense.files import check_target, staged
from keras_resdense.networks.drop_ins import DROP_INS, saved_as

#: Images of a batch where none is named: Keras's.
BATCH = 32


@saved_as("keras.src.models.functional.Functional")
class Model(keras.Model):
    """Keras's functional model, whose `predict` loses no time between arrays and network.

    Keras makes a data set of an array, and has TensorFlow look for its numbers of threads. To end such a data set can
    take longer than the network takes for some images, see `prefetch`.

    A saved model names Keras's class, so it opens without this package.

    Attributes:
        image_contract: How an image becomes the model's input; None where that is not known. `save` writes it, and
            the names of the classes, into a `.keras`, which plain Keras opens all the same.
        class_names: Names of the classes in the order of their numbers; None where they are not known.
        weights_origin: Of the file of weights that it was built with: name, SHA-256 and, from the Hugging Face hub,
            repository and revision.
    """

    image_contract: ImageContract | None = None
    class_names: tuple[str, ...] | None = None
    weights_origin: Mapping[str, str] | None = None

    def save(self, filepath: str | Path, overwrite: bool = True, zipped: bool | None = None) -> None:
        path = Path(filepath)
        texts = as_files(self.image_contract, self.class_names)
        if path.suffix != ".keras" or zipped is False or not texts:
            super().save(filepath, overwrite=overwrite, zipped=zipped)
            return
        check_target(path, overwrite)
        with staged(path) as temporary:
            super().save(temporary)
            attach(temporary, texts)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
    ) -> Any:
        if _is_images(x):
            x, batch_size = _batches(x, batch_size or BATCH), None
        return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)

    def __reduce__(self) -> tuple[Any, ...]:
        _, file = super().__reduce__()
        return _unpickle, file, {"image_contract": self.image_contract, "class_names": self.class_names}


def load_model(
    path: str | Path, *, compile: bool = True, custom_objects: Mapping[str, Any] | None = None
) -> keras.Model:
    """Opens a `.keras` file with this package's layers, its image contract and the names of its classes.

    `keras.saving.load_model` opens the same files with Keras's own layers. These compute the same numbers, but without
    fused batch norms, without one average of statistics for all replicas of a `tf.distribute` strategy, and without
    the recomputation of `memory_efficient` dense networks. A file that was opened and saved again by Keras alone
    stays with its layers.

    Args:
        path: File written by `model.save`.
        compile: Whether to compile it as it was, and give its optimizer back its state.
        custom_objects: Classes and functions by the names that the file has for them, besides this package's.

    Raises:
        ValueError: If there is no such file, or it is damaged or holds code.
    """
    with keras.saving.custom_object_scope(DROP_INS):
        model = keras.saving.load_model(path, custom_objects=custom_objects, compile=compile)
    if zipfile.is_zipfile(path):
        model.image_contract, model.class_names = attached(Path(path))
    return model


def _unpickle(file: io.BytesIO) -> keras.Model:
    with keras.saving.custom_object_scope(DROP_INS):
        return keras.Model._unpickle_model(file)


def _is_images(x: Any) -> bool:
    """Says whether these are arrays `(batch, height, width, channels)` for TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return isinstance(x, np.ndarray | tf.Tensor) and len(x.shape) == 4 and len(x) > 0


def _batches(x: Any, size: int) -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return prefetch(tf.data.Dataset.from_tensor_slices(x).batch(size)).with_options(options)
