"""Inputs and probabilities are those of timm's `create_transform` and torchvision's `weights.transforms()`.

The results of these libraries are in `golden/transforms.npz`, beside the script that recorded them.
"""

import dataclasses
import itertools
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_resdense
from keras_resdense.data.contract import ImageContract
from keras_resdense.data.resizing import prepare, prepare_outside_a_graph
from keras_resdense.pretrained import weights
from keras_resdense.pretrained.preprocessing import PREPROCESSINGS
from tests.golden import rule
from tests.golden.make_transform_golden import CROPS, INTERPOLATIONS, SHARES, SHARPNESS, pictures, sample
from tests.zoo_facts import TORCH

GOLDEN = np.load(Path(__file__).parent / "golden/transforms.npz")
PICTURES = pictures()
RESIZES = {"center": "shorter_side", "squash": "squash"}


def contract_of(crop, interpolation, resized, size):
    """Returns the contract of a golden entry, from the words of its key."""
    resized, size = int(resized), int(size)
    # timm is told the share; torchvision is told the side before the crop.
    share = next((share for share in SHARES if math.floor(size / share) == resized), size / resized)
    return ImageContract(size=(size, size), resize=RESIZES[crop], crop=share, interpolation=interpolation)


@pytest.mark.parametrize(
    ("library", "crop", "interpolation"),
    [*(("timm", *words) for words in itertools.product(CROPS, INTERPOLATIONS)), ("torchvision", "center", "bilinear")],
)
def test_pixels_differ_by_at_most_two(library, crop, interpolation):
    entries = [key for key in GOLDEN if key.startswith(f"pixels/{library}/") and f"/{crop}/{interpolation}/" in key]
    for key in entries:
        picture, *words = key.split("/")[2:]
        (found,) = keras_resdense.transform(contract_of(*words))(PICTURES[picture])
        assert np.abs(sample(found) - GOLDEN[key]).max() <= 2, key
    assert len(entries) == len(PICTURES) * {"timm": 9, "torchvision": 2}[library]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", RESIZES.values())
def test_outside_of_a_graph_pixels_are_the_same(resize, interpolation):
    contract = ImageContract(size=(56, 40), resize=resize, crop=0.875, interpolation=interpolation)
    for picture, channels in itertools.product(PICTURES.values(), (1, 3)):
        wanted = dataclasses.replace(contract, channels=channels)
        pixels = np.asarray(Image.fromarray(picture).convert("RGB"))
        found = prepare_outside_a_graph(pixels, wanted)
        difference = np.abs(found - np.asarray(prepare(tf.constant(pixels), wanted)))
        assert found.dtype == np.uint8 and difference.max() <= 2 and difference.mean() < 0.05


@pytest.mark.parametrize("preprocessing", ["torch", "half"])
@pytest.mark.parametrize("inside", [True, False])
def test_probabilities_differ_by_at_most_a_thousandth(preprocessing, inside):
    model = keras_resdense.create_model(
        "resnet18",
        input_shape=(None, None, 3),
        classifier_activation=None,
        include_preprocessing=preprocessing if inside else False,
    )
    tensors = {name: rule.array(name, tuple(shape)) for name, shape in TORCH["resnet18"]["tensors"]}
    weights.assign(model, tensors, "torch")
    entries = [key for key in GOLDEN if key.startswith(f"logits/{preprocessing}/")]
    for key in entries:
        picture, *words = key.split("/")[2:]
        contract = contract_of(*words)
        if not inside:
            normalised = PREPROCESSINGS[preprocessing].contract(contract.size)
            contract = dataclasses.replace(contract, mean=normalised.mean, std=normalised.std)
        logits = model.predict_on_batch(keras_resdense.transform(contract)(PICTURES[picture]))
        ours, theirs = (np.asarray(keras.ops.softmax(SHARPNESS * values)) for values in (logits[0], GOLDEN[key]))
        assert 0.3 < theirs.max() < 0.9
        assert np.abs(ours - theirs).max() <= 1e-3, key
    assert len(entries) == 2 * len(PICTURES)
