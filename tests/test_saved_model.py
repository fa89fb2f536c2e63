"""SavedModels and their folders, as TensorFlow Serving reads them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from keras_resdense.exporting.formats import EXPORTERS
from tests.test_export import TINY, some_images, tiny, write

NAMES = ["red", "green, or blue", "ü"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Returns a model, images, and the SavedModel made of the two."""
    model, images, path = tiny(), some_images(4), tmp_path_factory.mktemp("served") / "saved_model"
    write(model, path, "saved_model", images, class_names=NAMES)
    return model, images, path


def encoded(images):
    return [tf.io.encode_png(image).numpy() for image in images]


def test_warm_up_requests_are_what_the_clients_package_reads(served):
    from tensorflow_serving.apis import prediction_log_pb2

    _, images, path = served
    records = tf.data.TFRecordDataset(str(path / "assets.extra/tf_serving_warmup_requests")).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    assert [request.model_spec.signature_name for request in requests] == ["serving_default", "serve_images"]
    signatures = tf.saved_model.load(str(path)).signatures
    for request in requests:
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        assert signatures[request.model_spec.signature_name](**inputs)["outputs"].shape == (1, 3)
    np.testing.assert_array_equal(tf.make_ndarray(requests[0].inputs["images"]), images[:1])
    (file,) = tf.make_ndarray(requests[1].inputs["encoded"])
    np.testing.assert_array_equal(tf.io.decode_png(file), images[0])


def test_assets_hold_the_names(served):
    assert (served[2] / "assets/labels.txt").read_text(encoding="utf-8").splitlines() == NAMES
    assert EXPORTERS["saved_model"].read(served[2]).class_names == tuple(NAMES)


@pytest.mark.parametrize("damaged", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_image_leaves_the_others_their_answers(damaged, served):
    model, images, path = served
    first, *others = encoded(images)
    serve = tf.saved_model.load(str(path)).signatures["serve_images"]
    answer = serve(encoded=tf.constant([first, damaged, first[: len(first) // 2], *others]))
    np.testing.assert_array_equal(answer["valid"], [True, False, False, True, True, True])
    outputs = answer["outputs"].numpy()
    assert np.isnan(outputs[1:3]).all()
    np.testing.assert_allclose(outputs[[0, 3, 4, 5]], model.predict(images.astype("float32"), verbose=0), atol=1e-5)


def test_a_strict_one_refuses_the_whole_batch(tmp_path):
    write(tiny(), tmp_path / "saved_model", dataclasses.replace(EXPORTERS["saved_model"], strict=True))
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serve_images"]
    assert "valid" not in serve.structured_outputs
    with pytest.raises(tf.errors.InvalidArgumentError):
        serve(encoded=tf.constant([*encoded(some_images(1)), b"no image"]))


def test_maps_of_features_are_served_too(tmp_path):
    model = keras_resdense.create_model(TINY, include_top=False, input_shape=(32, 32, 3))
    images = some_images(2)
    write(model, tmp_path / "saved_model", "saved_model", images)
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serve_images"]
    outputs = serve(encoded=tf.constant([*encoded(images), b""]))["outputs"]
    np.testing.assert_allclose(outputs[:2], model.predict(images.astype("float32"), verbose=0), rtol=1e-3, atol=1e-3)
    assert np.isnan(outputs[2]).all()


def test_versions_stand_beside_each_other_in_one_folder(tmp_path):
    for version in (1, 12):
        exporter = dataclasses.replace(EXPORTERS["saved_model"], version=version)
        made = write(tiny(), tmp_path / "model", exporter)
        assert made.path == tmp_path / "model" / str(version)
        assert EXPORTERS["saved_model"].read(made.path)(some_images(2)).shape == (2, 3)
    # TensorFlow Serving takes every entry that is a number for a version.
    assert sorted(file.name for file in (tmp_path / "model").iterdir() if file.name.isdigit()) == ["1", "12"]
    with pytest.raises(ValueError, match="12 exists: choose another path, or overwrite it"):
        write(tiny(), tmp_path / "model", exporter)
    with pytest.raises(ValueError, match="version is 0; it must be at least 1, or None"):
        write(tiny(), tmp_path / "model", dataclasses.replace(exporter, version=0))
