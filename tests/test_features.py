"""Backbones: feature maps compared with timm's, and freezing."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from keras_resdense import feature_extractor, freeze
from keras_resdense.pretrained import weights
from tests.golden import rule
from tests.test_parity import ALWAYS, GOLDEN
from tests.zoo_facts import TORCH, sweep

FEATURES = np.load(GOLDEN / "torch_features.npz")
IMAGENET = sweep([name for name in TORCH if "@" not in name], ALWAYS)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(8, 32, 32, 3)).astype("float32")
LABELS = RANDOM.integers(0, 10, 8)


@pytest.mark.parametrize("variant", IMAGENET)
def test_maps_are_those_of_timm(variant):
    model = keras_resdense.create_model(variant, input_shape=(None, None, 3))
    weights.assign(model, {name: rule.array(name, tuple(shape)) for name, shape in TORCH[variant]["tensors"]}, "torch")
    maps = feature_extractor(model, ("P1", "P2", "P3", "P4", "P5")).predict_on_batch(rule.image(224))
    for level, found in maps.items():
        golden = f"{variant}/{2 ** int(level[1])}"
        assert found.shape[1:] == tuple(FEATURES[f"{golden}/shape"])
        means = FEATURES[golden]
        np.testing.assert_allclose(found.mean((0, 1, 2)), means, rtol=0, atol=1e-4 * np.abs(means).max())


KERASHUB = json.loads((GOLDEN / "kerashub_shapes.json").read_text())


@pytest.mark.parametrize("variant", sweep(KERASHUB))
def test_shapes_are_those_of_kerashubs_pyramids(variant):
    maps = feature_extractor(keras_resdense.create_model(variant)).output
    assert {level: list(found.shape[1:]) for level, found in maps.items()} == KERASHUB[variant]


@pytest.mark.parametrize(
    "variant", sweep(v for v, row in keras_resdense.VARIANTS.items() if row.stem.image_size == 224)
)
def test_every_imagenet_variant_has_maps_of_every_stride(variant):
    maps = feature_extractor(keras_resdense.create_model(variant), ("P1", "P2", "P3", "P4", "P5")).output
    assert [maps[level].shape[1] for level in sorted(maps)] == [112, 56, 28, 14, 7]


def test_default_levels():
    assert list(feature_extractor(keras_resdense.ResNet18(include_top=False)).output) == ["P2", "P3", "P4", "P5"]
    assert list(feature_extractor(keras_resdense.ResNet20()).output) == ["P0", "P1", "P2"]
    prefixed = keras_resdense.DenseNet121(include_top=False, layer_prefix="left_")
    assert list(feature_extractor(prefixed, ("P3",), prefix="left_").output) == ["P3"]


@pytest.mark.parametrize(
    "stride, levels", [(8, ["P1", "P2", "P3"]), pytest.param(16, ["P1", "P2", "P3", "P4"], marks=pytest.mark.sweep)]
)
@pytest.mark.parametrize("variant", ["resnet50", "densenet121"])
def test_dilated_backbones_end_at_their_stride(variant, stride, levels):
    row = dataclasses.replace(keras_resdense.VARIANTS[variant], output_stride=stride)
    model = keras_resdense.create_model(row, include_top=False, input_shape=(64, 64, 3))
    maps = feature_extractor(model, tuple(levels)).output
    assert [maps[level].shape[1] for level in levels] == [64 // 2 ** int(level[1]) for level in levels]
    assert maps[levels[-1]].shape[-1] == model.output_shape[-1]


def classifier(network):
    pooled = keras.layers.GlobalAveragePooling2D()(network.output)
    return keras.Model(network.input, keras.layers.Dense(10, activation="softmax", name="head")(pooled))


def changes(model):
    """Fits one epoch; returns whether each weight changed, by path."""
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = {weight.path: np.array(weight) for weight in model.weights}
    model.fit(IMAGES, LABELS, batch_size=4, verbose=0)
    return {weight.path: bool(np.any(np.asarray(weight) != before[weight.path])) for weight in model.weights}


def small(variant):
    """Builds a variant with one block or two dense layers a stage."""
    row = keras_resdense.VARIANTS[variant]
    depths = (2, 2, 2, 2) if variant == "densenet121" else (1, 1, 1, 1)
    return keras_resdense.create_model(dataclasses.replace(row, depths=depths), False, input_shape=(32, 32, 3))


@pytest.mark.parametrize(
    "variant, up_to", [("resnet18", "stage3"), ("resnet18", 3), ("resnet18v2", "P3"), ("densenet121", "P3")]
)
def test_frozen_stages_keep_weights_and_statistics_and_the_rest_moves(variant, up_to, tmp_path):
    model = classifier(small(variant))
    freeze(model, up_to)
    if up_to == "P3":
        model.save(tmp_path / "frozen.keras")
        model = keras.saving.load_model(tmp_path / "frozen.keras")
    frozen = ("stem_", "stage2_", "stage3_")
    changed = changes(model)
    assert not any(moved for path, moved in changed.items() if path.startswith(frozen))
    assert all(moved for path, moved in changed.items() if not path.startswith(frozen))
    freeze(model, None)
    assert all(changes(model).values())


def test_frozen_stages_keep_still_on_two_devices():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()).scope():
        model = classifier(small("resnet18"))
        freeze(model, "stage4")
        changed = changes(model)
    assert {path.split("_")[0] for path, moved in changed.items() if moved} == {"stage5", "head/kernel", "head/bias"}


def test_frozen_batch_norm_normalises_by_its_own_statistics_in_training():
    model = small("resnet18")
    freeze(model, "P5")
    np.testing.assert_allclose(model(IMAGES, training=True), model(IMAGES, training=False), atol=1e-5)


def test_a_backbone_inside_another_model(tmp_path):
    """A segmentation head and a feature pyramid on one backbone, saved and loaded."""
    backbone = feature_extractor(keras_resdense.ResNet18(include_top=False, input_shape=(64, 64, 3)))
    images = keras.Input((64, 64, 3))
    maps = backbone(images)
    merged = None
    pyramid = {}
    for level in ("P5", "P4", "P3", "P2"):
        lateral = keras.layers.Conv2D(16, 1, name=f"lateral_{level}")(maps[level])
        merged = lateral if merged is None else keras.layers.Add()([keras.layers.UpSampling2D()(merged), lateral])
        pyramid[level] = merged
    mask = keras.layers.Conv2D(2, 1, activation="softmax", name="mask")(keras.layers.UpSampling2D(4)(merged))
    model = keras.Model(images, {**pyramid, "mask": mask})
    outputs = model(np.ones((1, 64, 64, 3), "float32"))
    assert {name: tuple(found.shape[1:3]) for name, found in outputs.items()} == {
        "P5": (2, 2),
        "P4": (4, 4),
        "P3": (8, 8),
        "P2": (16, 16),
        "mask": (64, 64),
    }
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")(np.ones((1, 64, 64, 3), "float32"))
    for name, found in outputs.items():
        np.testing.assert_allclose(again[name], found, atol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: feature_extractor(model, ("P9",)), "must be a sequence of 'P0', 'P1', 'P2'"),
        (lambda model: feature_extractor(model, (0, 1, 2)), r"levels is \(0, 1, 2\); it must be a sequence of 'P0'"),
        (lambda model: feature_extractor(model, "P1"), "levels is 'P1'; it must be a sequence"),
        (lambda model: feature_extractor(model, prefix="x_"), "prefix is not 'x_'"),
        (lambda model: freeze(model, "stage9"), "up_to is 'stage9'; resnet20 has P0"),
        (lambda model: freeze(model, "P5"), "up_to is 'P5'"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(keras_resdense.ResNet20())


def test_frozen_weights_still_count():
    model = keras_resdense.ResNet20(input_shape=(8, 8, 3))
    count, parts = keras_resdense.count_parameters(model), keras_resdense.summarise(model)
    freeze(model, "stage3")
    assert keras_resdense.count_parameters(model) == count
    assert keras_resdense.summarise(model) == parts


@pytest.mark.parametrize("variant", ["resnet20", "densenetbc40_12"])
def test_backbones_come_back_from_files_and_configurations(variant, tmp_path):
    model = keras_resdense.create_model(variant, input_shape=(16, 16, 3))
    backbone = keras_resdense.as_backbone(model)
    assert list(backbone.pyramid_outputs) == ["P0", "P1", "P2"]
    assert backbone.pyramid_outputs["P2"] is backbone.output
    backbone.save(tmp_path / "backbone.keras")
    again = keras.saving.load_model(tmp_path / "backbone.keras")
    assert type(again) is keras_resdense.Backbone and list(again.pyramid_outputs) == ["P0", "P1", "P2"]
    assert type(again.get_layer("stem_conv1")) is type(model.get_layer("stem_conv1"))
    np.testing.assert_allclose(again(IMAGES[:, :16, :16]), backbone(IMAGES[:, :16, :16]), atol=1e-6)
    config = json.loads(json.dumps(backbone.get_config()))
    assert json.loads(json.dumps(keras_resdense.Backbone.from_config(backbone.get_config()).get_config())) == config
