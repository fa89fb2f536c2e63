"""Residual networks that recompute their blocks, compared with the same networks that keep all feature maps."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from tests.tracing import operations
from tests.zoo_facts import sweep

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(8, 32, 32, 3)).astype("float32")
LABELS = RANDOM.integers(0, 10, 8)
SMALL = {"depths": (2, 2, 1), "filters": (8, 16, 16)}
ROWS = {
    name: dataclasses.replace(keras_resdense.VARIANTS[name], **SMALL)
    for name in ("resnet50", "seresnet50", "resnet18", "resnet50v2_keras", "preactresnet110", "resnet1202")
}


def pair(row):
    """Returns a network that keeps its feature maps and one that recomputes them, with the same weights."""
    rows = row, dataclasses.replace(row, memory_efficient=True)
    both = [keras_resdense.create_model(row, input_shape=IMAGES.shape[1:], classes=10) for row in rows]
    both[1].set_weights(both[0].get_weights())
    return both


def train(model):
    model.compile(keras_resdense.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    model.fit(IMAGES, LABELS, batch_size=8, epochs=2, shuffle=False, verbose=0)


def assert_trained_alike(first, second):
    for model in (first, second):
        train(model)
    for one, other in zip(first.weights, second.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-6, err_msg=one.path)


@pytest.mark.parametrize("name", sweep(ROWS, {"resnet50"}))
def test_recomputing_changes_no_number(name):
    assert_trained_alike(*pair(ROWS[name]))


@pytest.mark.sweep
def test_moving_averages_of_keras_s_own_code_are_updated_once():
    both = pair(ROWS["resnet18"])
    for layer in (layer for model in both for layer in model.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    assert_trained_alike(*both)


@pytest.mark.sweep
def test_a_partly_frozen_backbone_recomputes_as_a_layer_of_another_model():
    images, trained = keras.Input(IMAGES.shape[1:]), []
    for network in pair(ROWS["resnet50"]):
        keras_resdense.freeze(network, "stage2")
        backbone = keras_resdense.as_backbone(network)
        assert backbone.recomputes_blocks == network.recomputes_blocks
        pooled = keras.layers.GlobalAveragePooling2D()(backbone(images))
        head = keras.layers.Dense(10, "softmax", kernel_initializer="zeros")
        trained.append(keras.Model(images, head(pooled)))
    kept, recomputed = (len(convolutions(model)) for model in trained)
    assert recomputed > kept
    assert_trained_alike(*trained)


@pytest.mark.sweep
def test_replicas_recompute():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()).scope():
        both = pair(ROWS["resnet18"])
        assert_trained_alike(*both)


def convolutions(model):
    """Returns the forward convolutions in a step of gradients."""
    return [op for op in operations(model, IMAGES.shape) if op.type == "Conv2D"]


def test_all_stages_but_the_last_are_computed_again_after_the_gradient_arrives():
    kept, recomputed = map(convolutions, pair(ROWS["resnet50"]))
    # Three convolutions in each of four blocks, and a projection in the first block of two stages.
    assert len(recomputed) - len(kept) == 3 * 4 + 2
    assert sum(bool(op.inputs[0].op.control_inputs) for op in recomputed) == 4 + 2


def test_a_file_keeps_that_a_network_recomputes_and_opens_in_plain_keras(tmp_path):
    _, model = pair(ROWS["resnet50"])
    model.save(tmp_path / "model.keras")
    opened, plain = (load(tmp_path / "model.keras") for load in (keras_resdense.load_model, keras.saving.load_model))
    assert opened.recomputes_blocks and not hasattr(plain, "recomputes_blocks")
    for each in (opened, plain):
        np.testing.assert_allclose(each.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=1e-6)
