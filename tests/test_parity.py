"""Parity with independent implementations, on random weights and random batch norm statistics.

keras.applications runs in the same process. The outputs of timm and torchvision are in `golden/`, beside the script
that recorded them. Both sides compute weights and images by the same rule.
"""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import applications

import keras_resdense
from keras_resdense.pretrained import weights
from tests.golden import rule
from tests.zoo_facts import KERAS, TORCH, sweep

GOLDEN = Path(__file__).parent / "golden"
LOGITS = np.load(GOLDEN / "torch_logits.npz")
SIZES = (224, 161)
#: One of each family and of each way to dilate; all others are in the sweep.
ALWAYS = {"resnet18", "resnet50d", "seresnet18", "resnet18v2", "resnet50v2@8", "densenet121", "resnet50@16"}
ALWAYS |= {"resnet50v1", "resnet50v2_keras", "resnext50_32x4d"}


def assert_same_logits(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def build(variant):
    name, _, stride = variant.partition("@")
    row = dataclasses.replace(keras_resdense.VARIANTS[name], output_stride=int(stride) if stride else None)
    return keras_resdense.create_model(row, input_shape=(None, None, 3), classifier_activation=None)


@pytest.mark.parametrize("variant", sweep(TORCH, ALWAYS))
def test_logits_are_those_of_timm_and_torchvision(variant):
    model = build(variant)
    weights.assign(model, {name: rule.array(name, tuple(shape)) for name, shape in TORCH[variant]["tensors"]}, "torch")
    for size in SIZES:
        assert_same_logits(model.predict_on_batch(rule.image(size))[0], LOGITS[f"{variant}/{size}"])


def randomised(peer: keras.Model) -> keras.Model:
    """Sets every weight to a value that differs from its default."""
    random = np.random.default_rng(0)
    for weight in peer.weights:
        fan_in = np.prod(weight.shape[:-1])
        kernel = random.normal(0, np.sqrt(1 / fan_in), weight.shape)
        positive = weight.name in ("gamma", "moving_variance")
        other = random.uniform(0.5, 1, weight.shape) if positive else random.normal(0, 0.1, weight.shape)
        weight.assign(kernel if weight.name == "kernel" else other)
    return peer


@pytest.mark.parametrize("variant", sweep(KERAS, {"resnet50v2_keras"}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_features_are_those_of_keras_applications(variant):
    peer = randomised(getattr(applications, KERAS[variant])(weights=None, include_top=False, pooling="avg"))
    tensors = {f"{layer.name}/{weight.name}": np.asarray(weight) for layer in peer.layers for weight in layer.weights}
    model = keras_resdense.create_model(variant, include_top=False, pooling="avg")
    weights.assign(model, tensors, "keras")
    for size in SIZES:
        images = rule.image(size)
        assert_same_logits(model.predict_on_batch(images), peer.predict_on_batch(images))
