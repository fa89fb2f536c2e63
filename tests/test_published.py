"""Published weights by name: in Python, on the command line, and evaluated on a data set like ImageNet."""

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

import keras_resdense
from keras_resdense.__main__ import main
from keras_resdense.pretrained.catalogue import find_weights
from keras_resdense.pretrained.preprocessing import imagenet_classes

PHOTO = Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg"
VARIANT, SET = "resnet18", "tv_in1k"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Returns a file that stands in for the published one: the weights of a random network."""
    path = tmp_path_factory.mktemp("hub") / "resnet18.weights.h5"
    keras_resdense.create_model(VARIANT).save_weights(path)
    return path


@pytest.fixture
def hub(published, monkeypatch):
    monkeypatch.setattr("keras_resdense.networks.zoo.download", lambda found, include_top: published)


@pytest.fixture
def imagenet(tmp_path, hub):
    """Writes a data set with ImageNet's classes in which half of the labels are the network's answers."""
    import tensorflow_datasets as tfds

    images = np.random.default_rng(0).integers(0, 256, (8, 40, 50, 3), "uint8")
    model = keras_resdense.create_model(VARIANT, weights=SET)
    answers = model.predict(keras_resdense.transform(model)(images), verbose=0).argmax(-1)
    labels = np.where(np.arange(8) < 4, answers, (answers + 1) % 1000)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=[wordnet_id for wordnet_id, _ in imagenet_classes()]),
        }
    )
    rows = [{"image": image, "label": int(label)} for image, label in zip(images, labels, strict=True)]
    splits = {
        split: tf.data.Dataset.from_generator(lambda: rows, output_signature=features.get_tensor_spec())
        for split in ("train", "validation")
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet_like", version="1.0.0", features=features, split_datasets=splits, data_dir=str(tmp_path)
    )
    return tmp_path


def test_three_lines_give_names(hub):
    model = keras_resdense.ResNet18(weights=SET)
    batch = keras_resdense.transform(model)(PHOTO)
    ((first, *_),) = keras_resdense.decode_predictions(model.predict(batch, verbose=0))
    assert first[:2] in imagenet_classes() and batch.shape == (1, 224, 224, 3)
    assert model.image_contract == find_weights(VARIANT, SET).contract()
    assert len(model.class_names) == 1000


def test_include_preprocessing_moves_the_normalisation_into_the_model(hub):
    outside = keras_resdense.ResNet18(weights=SET)
    inside = keras_resdense.ResNet18(weights=SET, include_preprocessing=True)
    assert inside.image_contract.takes_pixels and not outside.image_contract.takes_pixels
    expected = outside.predict(keras_resdense.transform(outside)(PHOTO), verbose=0)
    np.testing.assert_allclose(
        inside.predict(keras_resdense.transform(inside)(PHOTO), verbose=0), expected, rtol=1e-3, atol=1e-6
    )


def test_a_file_tells_its_set_by_its_name_or_must_be_told(published, tmp_path, capsys):
    named = tmp_path / "models--timm--resnet18.tv_in1k" / "resnet18.weights.h5"
    named.parent.mkdir()
    named.symlink_to(published)
    model = keras_resdense.ResNet18(weights=str(named), include_preprocessing=True)
    assert "looks like timm's resnet18 tv_in1k, by its name" in capsys.readouterr().out
    assert model.image_contract is not None
    with pytest.raises(ValueError, match="include_preprocessing='torch' or another of torch, half, tf, caffe"):
        keras_resdense.ResNet18(weights=str(published), include_preprocessing=True)
    half = keras_resdense.ResNet18(weights=str(published), include_preprocessing="half")
    np.testing.assert_allclose(half.get_layer("normalise").scale, 1 / 127.5)
    with pytest.raises(ValueError, match="no preprocessing 'hlaf'.* Closest: half"):
        keras_resdense.ResNet18(include_preprocessing="hlaf")


def test_predict_by_name(hub, capsys):
    assert main(["predict", VARIANT, "--weights", SET, str(PHOTO), "--format", "json", "--top", "1"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    model = keras_resdense.ResNet18(weights=SET)
    (probabilities,) = model.predict(keras_resdense.transform(model)(PHOTO), verbose=0)
    ((name, share),) = answer["classes"].items()
    assert name == imagenet_classes()[probabilities.argmax()][1]
    assert share == pytest.approx(probabilities.max(), rel=1e-4)
    assert main(["predict", VARIANT, str(PHOTO)]) == 1
    assert "variant without weights: name some, such as --weights imagenet" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_accuracy_is_verified_by_name(imagenet, capsys):
    data = ["--data", "imagenet_like", "--data-dir", str(imagenet)]
    assert main(["evaluate", VARIANT, "--weights", SET, *data]) == 0
    assert "50.00% of 8 held-out images right" in capsys.readouterr().out
