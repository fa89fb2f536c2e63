"""The models of builders, compared with Keras's functional model."""

import dataclasses
import json
import pickle
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from keras_resdense.data.contract import ImageContract
from keras_resdense.graph import all_layers
from keras_resdense.networks import dense_layers, drop_ins
from keras_resdense.networks.model import DROP_INS
from tests.zoo_facts import sweep

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns a model of ours, and the same one as plain Keras opens it."""
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


def test_the_training_step_is_traced_once():
    traced = []

    class Counted(keras.losses.Loss):
        def call(self, y_true, y_pred):
            traced.append(1)
            return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)

    model = keras_resdense.create_model("resnet20", input_shape=(8, 8, 3))
    model.compile("adam", Counted())
    model.fit(IMAGES[:6], np.arange(6), batch_size=2, verbose=0)
    assert len(traced) == 1


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


CONFIGURED = {
    "resnet": keras_resdense.VARIANTS["resnet18d"],
    "se_resnet": keras_resdense.VARIANTS["seresnet50"],
    "resnet_v2": keras_resdense.VARIANTS["resnet50v2"],
    "keras_applications": keras_resdense.VARIANTS["resnet50v2_keras"],
    "nested": keras_resdense.VARIANTS["resnet1202"],
    "dense": keras_resdense.VARIANTS["densenet121"],
    "memory_efficient": dataclasses.replace(keras_resdense.VARIANTS["densenetbc40_12"], memory_efficient=True),
}
MADE = {
    "network": lambda model: model,
    "folded": keras_resdense.fold_batch_norm,
    "features": keras_resdense.feature_extractor,
    "backbone": keras_resdense.as_backbone,
}


def as_json(model):
    return json.dumps(keras.saving.serialize_keras_object(model))


def named(config):
    """Yields module and class of every object in a configuration."""
    if isinstance(config, dict):
        if {"module", "class_name"} <= config.keys():
            yield f"{config['module']}.{config['class_name']}"
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from named(part)


@pytest.mark.parametrize("name", sweep(CONFIGURED, {"resnet", "memory_efficient"}))
def test_configurations_make_what_they_are_of_and_name_keras_classes(name):
    row = dataclasses.replace(CONFIGURED[name], depths=tuple(1 for _ in CONFIGURED[name].depths))
    network = keras_resdense.create_model(row, input_shape=(32, 32, 3), include_preprocessing=True)
    for kind, make in MADE.items():
        model = make(network)
        config, saved = json.dumps(model.get_config()), as_json(model)
        again = type(model).from_config(json.loads(config))
        assert type(again) is type(model) and json.dumps(again.get_config()) == config
        for ours, theirs in zip(all_layers(model), all_layers(again), strict=True):
            assert isinstance(theirs, type(ours))
        with keras.saving.custom_object_scope(DROP_INS):
            assert as_json(keras.saving.deserialize_keras_object(json.loads(saved))) == saved
        names = set(named(json.loads(saved))) - {"keras_resdense.insight.features.Backbone"}
        assert all(name.startswith("keras.") for name in names), names
        if kind != "backbone":
            kerases = keras.saving.deserialize_keras_object(json.loads(saved))
            assert {type(layer).__module__.split(".")[1] for layer in all_layers(kerases)} == {"src"}
            assert as_json(keras.saving.deserialize_keras_object(json.loads(as_json(kerases)))) == as_json(kerases)
        for layer in all_layers(model):
            with keras.saving.custom_object_scope(DROP_INS):
                made = type(layer).from_config(layer.get_config())
            assert type(made) is type(layer) and made.get_config() == layer.get_config()


def test_the_initializer_comes_back_from_its_configuration():
    made = drop_ins.RandomNormal(stddev=0.1, seed=3)
    again = drop_ins.RandomNormal.from_config(made.get_config())
    assert type(again) is drop_ins.RandomNormal and again.get_config() == made.get_config()
    np.testing.assert_array_equal(again((4, 4)), made((4, 4)))


LABELS = np.arange(7) % 10
DENSE = dataclasses.replace(
    keras_resdense.VARIANTS["densenetbc40_12"], depths=(2, 2), growth_rate=4, memory_efficient=True
)
RESIDUAL = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], memory_efficient=True)


def trained(row):
    """Returns a network after a step of training, and how it would go on."""
    model = keras_resdense.create_model(row, input_shape=IMAGES.shape[1:])
    model.compile(keras_resdense.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    model.fit(IMAGES, LABELS, verbose=0, shuffle=False)
    return model


def through_a_file(model, folder):
    model.save(folder / "model.keras")
    return keras_resdense.load_model(folder / "model.keras")


def through_pickle(model, folder):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize(
    "again, row",
    [
        pytest.param(through_a_file, DENSE, id="a file, dense", marks=pytest.mark.sweep),
        pytest.param(through_pickle, RESIDUAL, id="pickle, residual"),
        pytest.param(through_a_file, RESIDUAL, id="a file, residual", marks=pytest.mark.sweep),
        pytest.param(through_pickle, DENSE, id="pickle, dense", marks=pytest.mark.sweep),
    ],
)
def test_a_network_comes_back_as_it_was(again, row, tmp_path):
    model = trained(row)
    model.image_contract, model.class_names = ImageContract(size=(8, 8)), tuple("abcdefghij")
    opened = again(model, tmp_path)
    for ours, theirs in zip(model.layers, opened.layers, strict=True):
        assert isinstance(theirs, type(ours)) and ours.get_config() == theirs.get_config()
        assert getattr(ours, "recomputes", False) == getattr(theirs, "recomputes", False)
    assert opened.recomputes_blocks == model.recomputes_blocks
    assert type(opened) is type(model) and type(opened.optimizer) is keras_resdense.SGD
    assert opened.image_contract == model.image_contract and opened.class_names == model.class_names
    np.testing.assert_array_equal(opened.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0))
    for each in (model, opened):
        keras.utils.set_random_seed(1)
        each.fit(IMAGES, LABELS, verbose=0, shuffle=False)
    for ours, theirs in zip(model.get_weights(), opened.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_new_process_opens_a_network_as_it_was(tmp_path):
    """The process imports nothing of this package except in these calls."""
    model = keras_resdense.create_model(DENSE, input_shape=IMAGES.shape[1:])
    model.save(tmp_path / "model.keras")
    keras_resdense.as_backbone(model).save(tmp_path / "backbone.keras")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = """if True:
        import pickle, sys, keras, keras_resdense
        from keras_resdense import Backbone
        opened = keras_resdense.load_model(sys.argv[1] + "/model.keras")
        backbone = keras.saving.load_model(sys.argv[1] + "/backbone.keras")
        unpickled = pickle.load(open(sys.argv[1] + "/model.pickle", "rb"))
        for model in (opened, backbone, unpickled):
            print(type(model).__name__, *(type(layer).__qualname__ for layer in model.layers))
    """
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line, kind in zip(printed.splitlines(), ("Functional", "Backbone", "Functional"), strict=True):
        assert line.split()[0] == kind
        assert {"Concatenate", "RecomputingConv2D"} <= set(line.split())
    expected = [type(layer).__qualname__ for layer in model.layers]
    assert printed.splitlines()[0].split()[1:] == printed.splitlines()[2].split()[1:] == expected


def test_a_network_that_plain_keras_opened_and_saved_again_opens(tmp_path):
    model = trained(DENSE)
    model.save(tmp_path / "ours.keras")
    plain = keras.saving.load_model(tmp_path / "ours.keras")
    assert type(plain.optimizer) is keras.optimizers.SGD
    plain.save(tmp_path / "kerases.keras")
    opened = keras_resdense.load_model(tmp_path / "kerases.keras")
    np.testing.assert_allclose(opened.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=1e-6)


def test_replicas_of_an_opened_network_keep_one_average(models, tmp_path):
    models[0].save(tmp_path / "model.keras")
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()).scope():
        opened = keras_resdense.load_model(tmp_path / "model.keras")
        plain = keras.saving.load_model(tmp_path / "model.keras")
    norm, kerases = (model.get_layer("stem_bn1") for model in (opened, plain))
    assert norm.moving_mean.value.aggregation == tf.VariableAggregation.MEAN
    assert kerases.moving_mean.value.aggregation != tf.VariableAggregation.MEAN


def test_recomputing_needs_a_convolution_without_bias_and_activation():
    for options in ({}, {"use_bias": False, "activation": "relu"}):
        with pytest.raises(ValueError, match="pass use_bias=False and activation=None"):
            dense_layers.RecomputingConv2D(4, 3, **options)(keras.Input((8, 8, 3)))


def test_initial_weights_may_come_from_a_generator_of_seeds():
    draws = [drop_ins.RandomNormal(stddev=0.1, seed=generator) for generator in [keras.random.SeedGenerator(3)] * 2]
    first, second = (np.asarray(draw((50, 50))) for draw in draws)
    again = np.asarray(drop_ins.RandomNormal(stddev=0.1, seed=keras.random.SeedGenerator(3))((50, 50)))
    np.testing.assert_array_equal(first, again)
    assert (first != second).mean() > 0.9 and first.std() == pytest.approx(0.1, rel=0.05)
