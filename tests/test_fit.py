"""`model.fit` on tiny variants of each family, on one device and on two."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from tests.zoo_facts import sweep

TINY = {
    "resnet": dataclasses.replace(keras_resdense.VARIANTS["resnet18"], depths=(1, 1), filters=(8, 16)),
    "bottleneck": dataclasses.replace(keras_resdense.VARIANTS["resnet50d"], depths=(1, 1), filters=(8, 16)),
    "seresnet": dataclasses.replace(keras_resdense.VARIANTS["seresnet18"], depths=(1, 1), filters=(8, 16)),
    "resnext": dataclasses.replace(keras_resdense.VARIANTS["resnext50_32x4d"], depths=(1, 1), filters=(64, 64)),
    "plainnet": dataclasses.replace(keras_resdense.VARIANTS["plainnet20"], depths=(1, 1, 1)),
    "cifar": dataclasses.replace(keras_resdense.VARIANTS["resnet20"], depths=(1, 1, 1), drop_path=0.2),
    "preactivation": dataclasses.replace(keras_resdense.VARIANTS["preactresnet164"], depths=(1, 1, 1)),
    "keras_v2": dataclasses.replace(keras_resdense.VARIANTS["resnet50v2_keras"], depths=(1, 1), filters=(8, 16)),
    "densenet": dataclasses.replace(keras_resdense.VARIANTS["densenet121"], depths=(2, 2), growth_rate=8),
    "cifar_densenet": dataclasses.replace(keras_resdense.VARIANTS["densenet40_12"], depths=(2, 2, 2), dropout=0.2),
}
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(24, 32, 32, 3)).astype("float32")
LABELS = RANDOM.integers(0, 10, 24)


def compiled(row):
    model = keras_resdense.create_model(row, input_shape=(32, 32, 3), classes=10)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("family", sweep(TINY, {"resnet", "preactivation", "densenet", "cifar"}))
def test_a_tiny_variant_of_each_family_trains_saves_and_loads(family, tmp_path):
    model = compiled(TINY[family])
    before = model.get_weights()
    model.fit(IMAGES, LABELS, batch_size=8, epochs=1, verbose=0)
    assert all(np.any(old != new) for old, new in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=1e-6)


@pytest.mark.parametrize("policy", sweep(["mixed_bfloat16", "mixed_float16"], {"mixed_bfloat16"}))
def test_mixed_precision_trains_and_predicts_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(TINY["bottleneck"])
        loss = model.fit(IMAGES, LABELS, batch_size=8, epochs=1, verbose=0).history["loss"]
        assert np.isfinite(loss).all() and model.predict(IMAGES, verbose=0).dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


# Pre-activation lets float32's rounding grow above any tolerance worth the name within three steps.
PRECISE = {"resnet": "float32", "densenet": "float32", "preactivation": "float64"}


@pytest.mark.parametrize("family", sweep(PRECISE, {"densenet"}))
def test_two_devices_give_the_weights_of_one(family):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISE[family])
    try:
        assert_two_devices_give_the_weights_of_one(TINY[family])
    finally:
        keras.config.set_dtype_policy(before)


def assert_two_devices_give_the_weights_of_one(row):
    # Both halves of a batch hold the same images, so that batch statistics are those of the whole.
    images, labels = (np.concatenate([part, part]) for part in (IMAGES[:4], LABELS[:4]))
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat(3)
    one = compiled(row)
    # Collectives of two strategies in one process get in each other's way; this reduction has none.
    reduction = tf.distribute.ReductionToOneDevice()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction).scope():
        two = compiled(row)
    two.set_weights(one.get_weights())
    for model in (one, two):
        model.fit(batches, epochs=1, shuffle=False, verbose=0)
    for weight, ours, theirs in zip(one.weights, one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5, err_msg=weight.path)
