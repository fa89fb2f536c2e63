"""The model that builders return, and how a saved one is opened."""

from __future__ import annotations

import functools
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
from keras_resdense.networks import dense_layers, drop_ins, recomputing
from keras_resdense.networks.drop_ins import saved_as

#: Keras's default size of a batch.
BATCH = 32
#: Member of a `.keras` file whose model recomputes its blocks.
RECOMPUTES_FILE = "recomputes_blocks"


@saved_as("keras.src.models.functional.Functional")
class Model(keras.Model):
    """Keras's functional model with a faster `predict` for arrays and a faster first training step, and with an image
    contract.

    Keras turns an array into a data set whose threads TensorFlow tunes. Closing such a data set can take longer than
    predicting a few images, see `prefetch`; this class makes one without tuning. Keras lets TensorFlow trace the
    training step twice if the optimiser has variables; here, once.

    A saved model names Keras's class, so it opens without this package.

    Attributes:
        image_contract: How an image becomes the model's input; None if unknown. `save` writes it and the class names
            into a `.keras` file, which plain Keras still opens.
        class_names: Names of the classes in the order of their indices; None if unknown.
        recomputes_blocks: Whether training recomputes a residual network's blocks, see `ResNet.memory_efficient`. This
            works where the model is trained or is a layer of another model, but not in a model that is made from its
            tensors, such as `keras.Model(network.input, network.get_layer("avg_pool").output)`.
        weights_origin: Where its weights came from: the file's name and SHA-256 and, if it is from the Hugging Face
            hub, its repository and revision.
    """

    image_contract: ImageContract | None = None
    class_names: tuple[str, ...] | None = None
    recomputes_blocks: bool = False
    weights_origin: Mapping[str, str] | None = None

    def save(self, filepath: str | Path, overwrite: bool = True, zipped: bool | None = None) -> None:
        path = Path(filepath)
        texts = as_files(self.image_contract, self.class_names)
        texts |= {RECOMPUTES_FILE: ""} if self.recomputes_blocks else {}
        if path.suffix != ".keras" or zipped is False or not texts:
            super().save(filepath, overwrite=overwrite, zipped=zipped)
            return
        check_target(path, overwrite)
        with staged(path) as temporary:
            super().save(temporary)
            attach(temporary, texts)

    @functools.cached_property
    def _segments(self) -> list[keras.Model]:
        return recomputing.segments(self)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not (training and self.recomputes_blocks and drop_ins.kernels) or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        stem, *blocks, end = self._segments
        x = stem(inputs, training=True)
        for block in blocks:
            x = drop_ins.kernels.recomputed(functools.partial(block, training=True), x)
        return end(x, training=True)

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

    def make_train_function(self, force: bool = False) -> Any:
        # Otherwise the optimiser's variables are made while the step is traced, and TensorFlow traces it twice.
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Model:
        with keras.saving.custom_object_scope(DROP_INS):
            return super().from_config(config, custom_objects=custom_objects)

    def __reduce__(self) -> tuple[Any, ...]:
        _, file = super().__reduce__()
        kept = ("image_contract", "class_names", "recomputes_blocks")
        return _unpickle, file, {name: getattr(self, name) for name in kept}


#: What this package makes of the classes that a file names; where two drop in for one, the later does.
DROP_INS: dict[str, type] = drop_ins.DROP_INS | dense_layers.DROP_INS | {Model.__name__: Model}


def load_keras(
    path: str | Path, *, compile: bool = True, custom_objects: Mapping[str, Any] | None = None
) -> keras.Model:
    """Opens a `.keras` file with this package's layers, see `keras_resdense.load_model`."""
    with keras.saving.custom_object_scope(DROP_INS):
        model = keras.saving.load_model(path, custom_objects=custom_objects, compile=compile)
    if zipfile.is_zipfile(path):
        model.image_contract, model.class_names = attached(Path(path))
        with zipfile.ZipFile(path) as archive:
            model.recomputes_blocks = RECOMPUTES_FILE in archive.namelist()
    return model


def _unpickle(file: io.BytesIO) -> keras.Model:
    with keras.saving.custom_object_scope(DROP_INS):
        return keras.Model._unpickle_model(file)


def _is_images(x: Any) -> bool:
    """Returns whether x is an array `(batch, height, width, channels)` for TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return isinstance(x, np.ndarray | tf.Tensor) and len(x.shape) == 4 and len(x) > 0


def _batches(x: Any, size: int) -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return prefetch(tf.data.Dataset.from_tensor_slices(x).batch(size)).with_options(options)
