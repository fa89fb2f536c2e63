"""Shared and recomputed tensors of dense networks, compared with plain Keras."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from keras_resdense.networks import dense_layers, densenet
from tests.tracing import operations

ROW = dataclasses.replace(keras_resdense.VARIANTS["densenetbc100_12"], depths=(5, 4, 3))
# Beside widths that suit vector instructions, one that needs 16 pixels at a time and images without room for them.
ROWS = {"k=12": ROW, "k=5": dataclasses.replace(ROW, growth_rate=5, compression=0.3)}
RANDOM = np.random.default_rng(0)
OTHERS = [("k=12", True), ("k=5", False)]
IMAGES = RANDOM.normal(size=(8, 14, 14, 3)).astype("float32")
LABELS = RANDOM.integers(0, 10, 8)


def plain(row, monkeypatch):
    """Builds a network from Keras's own layers only."""
    with monkeypatch.context() as patch:
        patch.setattr(dense_layers, "Concatenate", keras.layers.Concatenate)
        patch.setattr(densenet.DenseStyle, "activation_layer", keras.layers.Activation)
        patch.setattr(densenet.DenseStyle, "batch_norm_layer", keras.layers.BatchNormalization)
        return keras_resdense.create_model(row, input_shape=IMAGES.shape[1:])


def with_random_norms(model):
    """Sets batch norms so that no value is close to 0 at a ReLU, where rounding errors would change gradients."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name == "gamma":
            weight.assign(random.uniform(0.2, 0.4, weight.shape))
        if weight.name == "beta":
            weight.assign(random.choice([-3, 3, 4], weight.shape))
    return model


def step(model):
    """Returns the outputs, the gradients and the weights after a training step's forward pass."""

    @tf.function
    def compute(images):
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(LABELS, tf.cast(outputs, tf.float32)))
        return outputs, tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    outputs, gradients = compute(IMAGES)
    return [outputs], gradients, model.get_weights()


def assert_close(ours, theirs, tolerance):
    """Compares relative to the largest norm of a kind, because some gradients are 0 except for rounding errors."""
    for our_kind, their_kind in zip(ours, theirs, strict=True):
        largest = max(map(np.linalg.norm, their_kind))
        for our, their in zip(our_kind, their_kind, strict=True):
            assert np.linalg.norm(our - their) <= tolerance * largest


@pytest.mark.parametrize(
    "name, memory_efficient",
    [("k=12", False), ("k=5", True)] + [pytest.param(*rest, marks=pytest.mark.sweep) for rest in OTHERS],
)
def test_shared_statistics_change_no_number(name, memory_efficient, monkeypatch):
    theirs = with_random_norms(plain(ROWS[name], monkeypatch))
    row = dataclasses.replace(ROWS[name], memory_efficient=memory_efficient)
    ours = keras_resdense.create_model(row, input_shape=IMAGES.shape[1:])
    ours.set_weights(theirs.get_weights())
    assert_close(step(ours), step(theirs), 1e-5)


@pytest.mark.sweep
def test_recomputing_draws_the_same_dropout():
    results = []
    for memory_efficient in (False, True):
        keras.utils.set_random_seed(0)
        row = dataclasses.replace(ROW, dropout=0.2, memory_efficient=memory_efficient)
        results.append(step(with_random_norms(keras_resdense.create_model(row, input_shape=IMAGES.shape[1:]))))
    assert_close(*results, 1e-6)


def test_statistics_of_a_channel_are_computed_once():
    model = keras_resdense.create_model(ROW, input_shape=IMAGES.shape[1:])
    training = [
        op for op in operations(model, IMAGES.shape) if op.type == "FusedBatchNormV3" and op.get_attr("is_training")
    ]
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    # A norm for each layer's bottleneck, one for each block's input, and the parts of each concatenation.
    assert len(training) == sum(ROW.depths) + len(ROW.depths) + sum(depth + 1 for depth in ROW.depths)
    assert sum(op.inputs[0].shape[-1] for op in training) < sum(norm.gamma.shape[0] for norm in norms)


def test_recomputing_is_not_mistaken_for_the_same_computation():
    row = dataclasses.replace(ROW, memory_efficient=True)
    model = keras_resdense.create_model(row, input_shape=IMAGES.shape[1:])
    concatenations = [op for op in operations(model, IMAGES.shape) if op.type == "ConcatV2"]
    again = [op for op in concatenations if op.inputs[0].op.control_inputs]
    # What the first convolution of each layer reads, but for a block's first layer, which reads no concatenation.
    assert len(again) == sum(ROW.depths) - len(ROW.depths)


def test_a_memory_efficient_network_is_saved_as_a_plain_one(tmp_path):
    row = dataclasses.replace(ROW, memory_efficient=True)
    model = keras_resdense.create_model(row, input_shape=IMAGES.shape[1:])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    kinds = ("Activation", "BatchNormalization", "Concatenate", "Conv2D")
    assert {type(layer) for layer in again.layers} >= {getattr(keras.layers, name) for name in kinds}
    assert not any(type(layer) in vars(dense_layers).values() for layer in again.layers)
    np.testing.assert_allclose(again(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("float64", marks=pytest.mark.sweep)])
def test_other_precisions_train(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        row = dataclasses.replace(ROW, memory_efficient=True)
        model = keras_resdense.create_model(row, input_shape=IMAGES.shape[1:])
        model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
        losses = model.fit(IMAGES, LABELS, epochs=6, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy(before)
    assert losses[-1] < losses[0]
