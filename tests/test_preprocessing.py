"""Preprocessing and class names, compared with keras.applications and torchvision."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import applications

import keras_resdense
from keras_resdense import decode_predictions, preprocess_input
from keras_resdense.pretrained.catalogue import find_weights
from keras_resdense.pretrained.preprocessing import PREPROCESSINGS, add_preprocessing, imagenet_classes

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3)).astype("float32")
#: Of each module of keras.applications, a variant that it publishes weights of.
FAMILIES = {"resnet": "resnet50v1", "resnet_v2": "resnet50v2_keras", "densenet": "densenet121"}
PEERS = {"caffe": applications.resnet, "tf": applications.resnet_v2, "torch": applications.densenet}


@pytest.mark.parametrize("mode", PEERS)
def test_inputs_are_those_of_keras_applications(mode):
    expected = PEERS[mode].preprocess_input(PIXELS.copy())
    np.testing.assert_allclose(preprocess_input(PIXELS, mode), expected, atol=1e-4)
    tensor = preprocess_input(keras.ops.convert_to_tensor(PIXELS), mode)
    np.testing.assert_allclose(tensor, expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("data_format", [None, "channels_last", "channels_first"])
def test_families_have_the_functions_of_keras_applications(family, data_format):
    ours, theirs = getattr(keras_resdense, family), getattr(applications, family)
    pixels = PIXELS.transpose(0, 3, 1, 2) if data_format == "channels_first" else PIXELS
    expected = theirs.preprocess_input(pixels.copy(), data_format)
    np.testing.assert_allclose(ours.preprocess_input(pixels, data_format), expected, atol=1e-4)
    symbolic = keras.Input(pixels.shape[1:])
    model = keras.Model(symbolic, ours.preprocess_input(symbolic, data_format))
    np.testing.assert_allclose(model(pixels), expected, atol=1e-4)
    (batch,) = tf.data.Dataset.from_tensors(pixels).map(lambda x: ours.preprocess_input(x, data_format))
    np.testing.assert_allclose(batch, expected, atol=1e-4)
    assert ours.decode_predictions is decode_predictions
    published = find_weights(FAMILIES[family], "keras").preprocessing
    np.testing.assert_array_equal(ours.preprocess_input(PIXELS), preprocess_input(PIXELS, published))


@pytest.mark.parametrize("mode", PREPROCESSINGS)
def test_every_kind_of_tensor_is_taken(mode):
    expected = preprocess_input(PIXELS, mode)
    symbolic = keras.Input((8, 9, 3))
    model = keras.Model(symbolic, preprocess_input(symbolic, mode))
    np.testing.assert_allclose(model(PIXELS), expected, atol=1e-4)
    (batch,) = tf.data.Dataset.from_tensors(PIXELS.astype("uint8")).map(lambda x: preprocess_input(x, mode))
    np.testing.assert_allclose(batch, expected, atol=1e-4)
    first = preprocess_input(PIXELS.transpose(0, 3, 1, 2), mode, "channels_first")
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), expected)


@pytest.mark.parametrize("mode", PREPROCESSINGS)
def test_layers_do_what_the_function_does(mode, tmp_path):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, add_preprocessing(inputs, mode))
    np.testing.assert_allclose(model(PIXELS), preprocess_input(PIXELS, mode), atol=1e-4)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(PIXELS), model(PIXELS))


def test_half_is_timms_mean_and_deviation_of_a_half():
    np.testing.assert_allclose(preprocess_input(PIXELS, "half"), (PIXELS / 255 - 0.5) / 0.5, atol=1e-6)


def test_a_model_can_hold_its_preprocessing():
    inside = keras_resdense.ResNet20(include_preprocessing=True, input_shape=(8, 9, 3))
    outside = keras_resdense.ResNet20(input_shape=(8, 9, 3))
    outside.set_weights(inside.get_weights())
    np.testing.assert_allclose(inside(PIXELS), outside(preprocess_input(PIXELS)), atol=1e-5)


def test_names_of_classes_are_torchvisions():
    names = (Path(__file__).parent / "golden/imagenet_categories.txt").read_text().splitlines()
    ours = [name.replace("_", " ") for _, name in imagenet_classes()]
    differing = [(our, their) for our, their in zip(ours, names, strict=True) if our.lower() != their.lower()]
    assert all(our in their for our, their in differing) and len(differing) <= 3, differing
    assert len({identifier for identifier, _ in imagenet_classes()}) == 1000


def test_decode_predictions_names_the_most_probable():
    predictions = np.zeros((2, 1000))
    predictions[0, [1, 0]] = 0.7, 0.2
    predictions[1, 281] = 1
    first, second = decode_predictions(predictions, top=2)
    assert first == [("n01443537", "goldfish", 0.7), ("n01440764", "tench", 0.2)]
    assert second[0] == ("n02123045", "tabby", 1.0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: preprocess_input(PIXELS, "BGR"), r"no preprocessing 'BGR'\..*There are torch"),
        (lambda: preprocess_input(PIXELS[..., :1]), "must be RGB"),
        (lambda: decode_predictions(np.zeros((1, 10))), r"\(batch, 1000\) is needed"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
