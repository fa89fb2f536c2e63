"""What builders return, against Keras's functional model."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns one of ours and the same as Keras opens it from its file."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model = keras_resdense.create_model("resnet20", input_shape=(8, 8, 3))
    model.save(path)
    return model, keras.saving.load_model(path)


@pytest.mark.parametrize(
    "images, options",
    [
        (IMAGES, {}),
        (IMAGES, {"batch_size": 3}),
        (IMAGES, {"batch_size": 3, "steps": 2}),
        (IMAGES.astype("uint8"), {}),
        (IMAGES.astype("float64"), {}),
        (tf.constant(IMAGES), {"batch_size": 4}),
        (tf.data.Dataset.from_tensors(IMAGES), {}),
    ],
)
def test_predicts_as_keras_does(models, images, options):
    ours, kerases = (model.predict(images, verbose=0, **options) for model in models)
    assert ours.dtype == kerases.dtype and ours.shape == kerases.shape
    np.testing.assert_allclose(ours, kerases, atol=1e-6)


def test_predicts_on_two_devices():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()).scope():
        model = keras_resdense.create_model("resnet20", input_shape=(8, 8, 3))
    np.testing.assert_allclose(model.predict(IMAGES, batch_size=4, verbose=0), model(IMAGES), atol=1e-6)


def test_callbacks_and_progress_know_the_batches(models, capsys):
    seen = []
    count = keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, logs: seen.append(len(logs["outputs"])))
    models[0].predict(IMAGES, batch_size=3, verbose=1, callbacks=[count])
    assert seen == [3, 3, 1]
    assert "3/3" in capsys.readouterr().out


def test_arrays_are_not_tuned(models, monkeypatch):
    given = []
    monkeypatch.setattr(type(models[1]), "predict", lambda model, x, **options: given.append(x))
    models[0].predict(IMAGES)
    assert given[0].options().autotune.enabled is False


@pytest.mark.parametrize(
    "make", [lambda model: model, keras_resdense.fold_batch_norm, keras_resdense.feature_extractor]
)
def test_saved_files_name_keras_class(models, make, tmp_path):
    make(models[0]).save(tmp_path / "model.keras")
    config = json.loads(zipfile.ZipFile(tmp_path / "model.keras").read("config.json"))
    assert (config["module"], config["class_name"]) == ("keras.src.models.functional", "Functional")
    assert type(keras.saving.load_model(tmp_path / "model.keras")) is type(models[1])
    assert type(keras.models.clone_model(make(models[0]))) is type(models[0])
