"""Writes `.tflite` files that continue to learn on the device."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import tempfile
from typing import Any

import keras
import numpy as np

from keras_resdense.exporting.exporter import Extras, relative_noise
from keras_resdense.exporting.gradients import differentiable, multiply
from keras_resdense.exporting.retracing import follow, retraced
from keras_resdense.exporting.tflite import TFLite
from keras_resdense.graph import all_layers, calls, place_of

#: The parts of a network that a file can train.
LEARNS = ("head", "last_stage")
#: How many numbers at the start of `save`'s result identify the network.
_KEY = 4
#: Largest `relative_noise` of a training step in the file, compared with TensorFlow's step.
_STEP_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainableTFLite(TFLite):
    """A `.tflite` that learns on the device with built-in operations only. It has four signatures:

    * `infer` takes `images` and returns `outputs`, as any other `.tflite` does.
    * `train` takes `images`, their `labels` (int32) and a `learning_rate`. It makes a step of gradient descent and
      returns the `loss`, which is the mean cross-entropy before the step. If an image or a label is invalid, or the
      step is not finite, the loss is NaN and no weight changes.
    * `save` returns `weights`, a vector of all trained weights.
    * `restore` takes such `weights` and returns `restored`. It is false, and no weight changes, if they are not finite
      or belong to another network or to other classes.

    Batch norms are folded and constant. The kernels and biases of convolutions and dense layers are trained.

    Attributes:
        learns: "head" to train the last dense layer, "last_stage" to train the last stage, too.
        train_batch: Images in a batch of `train`.
    """

    learns: str = "head"
    train_batch: int = 10

    def check(self, model: keras.Model, extras: Extras) -> None:
        if self.kind != "float32":
            raise ValueError(f"kind is {self.kind!r}; a file that learns computes in float32.")
        if self.learns not in LEARNS:
            raise ValueError(f"learns is {self.learns!r}; it must be {' or '.join(map(repr, LEARNS))}.")
        if self.train_batch < 1:
            raise ValueError(f"train_batch is {self.train_batch}; it must be at least 1.")
        super().check(model, extras)
        _learning_layers(self.prepare(model), self.learns)

    def prepare(self, model: keras.Model) -> keras.Model:
        rewritten = super().prepare(model)
        taken: set[str] = set()
        # `retraced` makes one flat model, in which names are unique. These layers are copies and can be renamed.
        for layer in dict.fromkeys(all_layers(rewritten)):
            names = itertools.chain([layer.name], (f"{layer.name}_{number}" for number in itertools.count(2)))
            layer.name = next(name for name in names if name not in taken)
            taken.add(layer.name)
        return retraced(rewritten, lambda call, args, kwargs: call.operation(*args, **kwargs))

    def _convert(self, model: keras.Model, extras: Extras) -> bytes:
        import tensorflow as tf

        network = _Learner(model, self, extras.class_names)
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(network.module, folder, signatures=network.signatures)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[*network.signatures])
            converter.experimental_enable_resource_variables = True
            written = converter.convert()
        images = np.resize(extras.images, (self.train_batch, *extras.images.shape[1:]))
        _check_step(written, network, images.astype(self.pixels))
        return written


def _classifier(model: keras.Model) -> tuple[keras.layers.Dense, set[str]]:
    """Returns a model's last dense layer, and the names of all layers from there on.

    Raises:
        ValueError: If its outputs are not the scores of this layer or their softmax.
    """
    end: set[str] = set()
    for call in reversed([*calls(model)]):
        layer = call.operation
        end.add(layer.name)
        plain = getattr(layer, "activation", None) in (keras.activations.linear, keras.activations.softmax)
        if isinstance(layer, keras.layers.Dense) and plain and len(model.output_shape) == 2:
            return layer, end
        if not (isinstance(layer, keras.layers.Activation) and plain):
            raise ValueError(
                f"{model.name!r} cannot learn on a device: it ends in {layer.name!r}, a {type(layer).__name__}. "
                "It must end in a dense layer of one score for each class, with or without softmax."
            )
    raise AssertionError(model.name)


def _learning_layers(model: keras.Model, learns: str) -> tuple[list[keras.Layer], set[str]]:
    """Returns the layers to train, and the names of all layers that gradients flow through.

    Raises:
        ValueError: If there are no such layers, or gradients would flow through a layer that is not supported.
    """
    head, end = _classifier(model)
    stages = {layer.name: place.stage for layer in model.layers if (place := place_of(layer.name))}
    last = max(stages.values(), default=0)
    if learns == "last_stage" and not last:
        raise ValueError(
            f"{model.name!r} has no layers named as this package names those of a stage, so its last stage is unknown: "
            "choose learns='head'."
        )
    learning, flowing = [], {}
    for call in calls(model):
        layer = call.operation
        in_stage = learns == "last_stage" and stages.get(layer.name) == last and layer.trainable
        if layer is head or (in_stage and isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)):
            learning.append(layer)
        if layer in learning or any(id(tensor) in flowing for tensor in call.input_tensors):
            flowing[id(call.output_tensors[0])] = layer.name
            if layer.name not in end and differentiable(layer) is None:
                raise ValueError(
                    f"{model.name!r} cannot learn on a device from its last stage on: LiteRT has no gradient of "
                    f"{layer.name!r}, a {type(layer).__name__}: choose learns='head'."
                )
    return list(dict.fromkeys(learning)), {*flowing.values()}


class _Learner:
    """The functions of a network that can be trained.

    Attributes:
        module: Module that holds the trained weights.
        signatures: Functions by the names of the file's signatures.
    """

    def __init__(self, model: keras.Model, row: TrainableTFLite, class_names: tuple[str, ...]):
        import tensorflow as tf

        self.model = model
        self.learning, self.flowing = _learning_layers(model, row.learns)
        self.classifier, self.end = _classifier(model)
        self.softmax = any(model.get_layer(name).activation is keras.activations.softmax for name in self.end)
        # By layer: the weights that Keras calls trainable, and the others.
        self.constant = {
            layer.name: [
                [variable.numpy() for variable in getattr(layer, kind, ())]
                for kind in ("trainable_variables", "non_trainable_variables")
            ]
            for layer in model.operations
        }
        self.module = tf.Module()
        self.module.weights = [tf.Variable(weight) for layer in self.learning for weight in layer.get_weights()]
        self.key = self._key(class_names)
        shape, pixels = model.input_shape[1:], tf.as_dtype(row.pixels)

        def spec(name, dtype, *shape):
            return tf.TensorSpec(shape, dtype, name=name)

        made = {
            "infer": (self.infer, spec("images", pixels, row.batch, *shape)),
            "train": (
                self.train,
                spec("images", pixels, row.train_batch, *shape),
                spec("labels", tf.int32, row.train_batch),
                spec("learning_rate", tf.float32),
            ),
            "save": (self.save,),
            "restore": (self.restore, spec("weights", tf.float32, *self.save()["weights"].shape)),
        }
        self.signatures = {
            name: tf.function(compute, input_signature=specs, autograph=False).get_concrete_function()
            for name, (compute, *specs) in made.items()
        }

    def infer(self, images: Any) -> dict[str, Any]:
        import tensorflow as tf

        scores = self._scores(images)
        return {"outputs": tf.nn.softmax(scores) if self.softmax else scores}

    def train(self, images: Any, labels: Any, learning_rate: Any) -> dict[str, Any]:
        import tensorflow as tf

        weights = self.module.weights
        images, labels = (_exactly(values, values.shape) for values in (images, labels))
        with tf.GradientTape() as tape:
            scores = self._scores(images)
            chosen = tf.one_hot(labels, scores.shape[-1])
            # For a label that is not a class, this is 0 / 0, which is NaN.
            likelihoods = tf.reduce_sum(chosen * tf.nn.log_softmax(scores), -1) / tf.reduce_sum(chosen, -1)
            loss = -tf.reduce_mean(likelihoods)
        gradients = tape.gradient(loss, weights)
        stepped = [weight - learning_rate * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        sound = _are_finite([loss, *stepped])
        for weight, value in zip(weights, stepped, strict=True):
            weight.assign(tf.where(sound, value, weight))
        return {"loss": tf.where(sound, loss, math.nan)}

    def save(self) -> dict[str, Any]:
        import tensorflow as tf

        return {"weights": tf.concat([self.key, *(tf.reshape(weight, [-1]) for weight in self.module.weights)], 0)}

    def restore(self, weights: Any) -> dict[str, Any]:
        import tensorflow as tf

        own = self.module.weights
        key, *parts = tf.split(weights, [_KEY, *(weight.shape.num_elements() for weight in own)])
        restored = tf.reduce_all(key == self.key) & _are_finite(parts)
        for weight, part in zip(own, parts, strict=True):
            weight.assign(tf.where(restored, tf.reshape(part, weight.shape), weight))
        return {"restored": restored}

    def _scores(self, images: Any) -> Any:
        """Returns the scores before the softmax."""
        import tensorflow as tf

        counts = [len(layer.weights) for layer in self.learning]
        split = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
        learned = {
            layer.name: [self.module.weights[place].read_value() for place in places]
            for layer, places in zip(self.learning, split, strict=True)
        }

        def use(call: Any, args: tuple, kwargs: dict) -> Any:
            layer = call.operation
            if layer is self.classifier:
                return multiply(learned[layer.name], args[0])
            if layer.name in self.end:
                return args[0]
            constants = tf.nest.map_structure(tf.constant, self.constant[layer.name])
            if layer.name in self.flowing:
                return differentiable(layer)(learned.get(layer.name, sum(constants, [])), *args)
            return layer.stateless_call(*constants, *args, **kwargs)[0] if any(constants) else layer(*args, **kwargs)

        return follow(self.model, tf.cast(images, self.model.inputs[0].dtype), use)

    def _key(self, class_names: tuple[str, ...]) -> np.ndarray:
        """Returns numbers that identify a network, from its classes and all weights that are not trained."""
        digest = hashlib.sha256(repr(class_names).encode())
        for layer in self.model.layers:
            learns = layer in self.learning
            # Names that Keras makes up differ from one export to the next.
            digest.update(f"{type(layer).__name__} {learns} {[weight.shape for weight in layer.weights]}".encode())
            for weight in () if learns else layer.get_weights():
                digest.update(weight.tobytes())
        # float32 represents whole numbers of three bytes exactly.
        numbers = np.frombuffer(digest.digest()[: 3 * _KEY], "uint8").reshape(_KEY, 3) @ [1, 2**8, 2**16]
        return numbers.astype("float32")


def _exactly(values: Any, shape: tuple[int, ...]) -> Any:
    """Returns the values. In the file, values of another size raise an error."""
    import tensorflow as tf

    # LiteRT resizes its inputs and broadcasts without an error. Its split operation compares sizes.
    flat = tf.concat([tf.reshape(values, [-1]), tf.zeros([1], values.dtype)], 0)
    return tf.reshape(tf.split(flat, [math.prod(shape), 1])[0], shape)


def _are_finite(tensors: list[Any]) -> Any:
    """Returns whether all numbers are finite."""
    import tensorflow as tf

    # LiteRT has no operation for this. Comparisons with NaN are false.
    return tf.reduce_all([tf.reduce_all(tf.abs(tensor) < math.inf) for tensor in tensors])


def _check_step(written: bytes, network: _Learner, images: np.ndarray) -> None:
    """Raises a RuntimeError if a training step in a file differs from TensorFlow's."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=written)
    labels = np.arange(len(images), dtype="int32") % network.model.output_shape[-1]
    batch = {"images": images, "labels": labels, "learning_rate": np.float32(1)}
    before = network.signatures["save"]()["weights"].numpy()[_KEY:]
    steps = []
    for run in (interpreter.get_signature_runner, network.signatures.get):
        run("train")(**batch)
        steps.append(np.asarray(run("save")()["weights"])[_KEY:] - before)
    noise = relative_noise(*steps)
    if not noise <= _STEP_TOLERANCE:
        raise RuntimeError(
            f"A step of training in the file differs from the model's: relative_noise is {noise:.2g}, "
            f"{_STEP_TOLERANCE:g} is allowed. Nothing was written."
        )
