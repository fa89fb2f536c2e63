"""Every variant, and the builders as users call them."""

import dataclasses
import inspect
import re
import subprocess
import sys

import jedi
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from keras_resdense import VARIANTS, create_model, list_models
from keras_resdense.networks import builders
from tests.tiny import ROOT
from tests.zoo_facts import CIFAR_PARAMETERS, QUICK, TORCH, facts, sweep

#: Their counts are checked always.
COUNTED = QUICK | {
    "resnet34",
    "resnet50",
    "resnet50v1",
    "seresnet18",
    "resnext50_32x4d",
    "wideresnet50_2",
    "resnet18v2",
}
COUNTED |= {"resnet50v2", "plainnet18", "plainnet20", "resnet56", "preactresnet110", "densenetbc100_12"}


GOLDEN = {name: golden["trainable"] for name, golden in TORCH.items() if "@" not in name} | CIFAR_PARAMETERS
BOTTLENECK = {
    variant for variant in VARIANTS if getattr(VARIANTS[variant], "block", None) is keras_resdense.bottleneck_block
}


@pytest.mark.parametrize("variant", sweep(GOLDEN, COUNTED))
def test_parameters_are_the_published_ones(variant):
    assert facts(variant).parameters == GOLDEN[variant]


def residual_count(depth):
    """Counts the parameters of a CIFAR network with 6n + 2 layers by 1512.03385, section 4.2."""
    channels, total = 16, 9 * 3 * 16 + 2 * 16
    for filters in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            total += 9 * channels * filters + 2 * filters + 9 * filters * filters + 2 * filters
            channels = filters
    return total + 10 * channels + 10


@pytest.mark.parametrize("variant", [name for name in CIFAR_PARAMETERS if not name.startswith("dense")])
def test_golden_counts_of_cifar_networks_follow_from_the_paper(variant):
    (depth,) = (int(number) for number in re.findall(r"\d+", variant))
    assert CIFAR_PARAMETERS[variant] == residual_count(depth)


def preactivation_count(variant):
    """Counts a CIFAR pre-activation network by 1603.05027, tables 1 and 4: weights, and batch norm's parameters."""
    depth = int(variant.removeprefix("preactresnet"))
    bottleneck, channels, weights, norms = depth != 110, 16, 9 * 3 * 16, 0
    for filters in (16, 32, 64):
        for unit in range((depth - 2) // (9 if bottleneck else 6)):
            norms += 2 * channels + (4 if bottleneck else 2) * filters
            if bottleneck:
                projection = 4 * channels * filters if unit == 0 else 0
                weights += channels * filters + 9 * filters**2 + 4 * filters**2 + projection
                channels = 4 * filters
            else:
                weights += 9 * channels * filters + 9 * filters**2
                channels = filters
    return weights + 10 * channels + 10, norms + 2 * channels


#: As the paper prints them, which is without batch norm's parameters.
PREACTIVATION_MILLIONS = {"preactresnet110": 1.7, "preactresnet164": 1.7, "preactresnet1001": 10.2}


@pytest.mark.parametrize("variant", sweep(PREACTIVATION_MILLIONS, COUNTED))
def test_parameters_of_cifar_preactivation_networks_follow_from_the_paper(variant):
    weights, norms = preactivation_count(variant)
    assert facts(variant).parameters == weights + norms
    assert round(weights / 1e6, 1) == PREACTIVATION_MILLIONS[variant]


@pytest.mark.parametrize("variant", sweep(["resnet18", "resnet34"]))
def test_plain_networks_lack_just_the_projections(variant):
    row = VARIANTS[variant]
    widths = (64, *row.filters)
    projections = sum(a * b + 2 * b for a, b in zip(widths, widths[1:], strict=False) if a != b)
    assert facts(variant.replace("resnet", "plainnet")).parameters == GOLDEN[variant] - projections


@pytest.mark.parametrize("variant", sweep(["resnet50", "resnet101", "resnet152"], COUNTED))
def test_parameters_do_not_depend_on_the_stride(variant):
    assert facts(f"{variant}v1").parameters == GOLDEN[variant]


def test_every_count_is_checked():
    elsewhere = {
        name for name in VARIANTS if name.startswith(("preactresnet", "plainnet")) or name.endswith(("v1", "_keras"))
    }
    assert set(VARIANTS) == set(GOLDEN) | elsewhere


@pytest.mark.parametrize("variant", sweep(["resnet50v2_keras", "resnet101v2_keras", "resnet152v2_keras"]))
def test_keras_dialect_has_keras_count(variant):
    peer = getattr(keras.applications, f"ResNet{variant[6:-6].upper()}")(weights=None)
    assert facts(variant).parameters == keras_resdense.count_parameters(peer)


GIGA_MACS = {
    "resnet18": 1.81,
    "resnet34": 3.66,
    "resnet50": 4.09,
    "resnet101": 7.80,
    "resnet152": 11.51,
    "resnet50v1": 3.86,
    "resnet101v1": 7.57,
    "resnet152v1": 11.28,
    "densenet121": 2.83,
    "densenet161": 7.73,
    "densenet169": 3.36,
    "densenet201": 4.29,
}


@pytest.mark.parametrize("variant", sweep(GIGA_MACS, COUNTED))
def test_macs_are_the_published_ones(variant):
    assert facts(variant).macs / 1e9 == pytest.approx(GIGA_MACS[variant], rel=0.01)


@pytest.mark.parametrize("variant", sweep(VARIANTS, COUNTED))
def test_names_are_unique_and_readable(variant):
    names = facts(variant).names
    assert len(set(names)) == len(names)
    known = ("images", "stem_", "stage", "final_", "avg_pool", "predictions")
    assert all(name.startswith(known) for name in names)


def stage_shapes(model):
    """Maps each stage to the shape of its last block's output."""
    ends = {}
    for layer in model.layers:
        if layer.name.startswith("stage") and "_transition" not in layer.name:
            ends[int(layer.name[5])] = layer.output.shape[1:]
    return ends


def expected_shapes(variant, size):
    """Computes the shapes of all stages from the papers' tables."""
    row = VARIANTS[variant]
    half = lambda side: -(-side // 2)  # noqa: E731
    imagenet = row.stem.image_size == 224
    side = half(half(size)) if imagenet else size
    if isinstance(row, keras_resdense.DenseNet):
        channels, shapes = row.stem_filters or 2 * row.growth_rate, {}
        for stage, depth in enumerate(row.depths, start=2):
            if stage > 2:
                channels, side = int(channels * row.compression), side // 2
            channels += depth * row.growth_rate
            shapes[stage] = (side, side, channels)
        return shapes
    shapes = {}
    for index, filters in enumerate(row.filters):
        ahead = index + 1 if row.strided_block == "last" and index < len(row.filters) - 1 else index
        reduced = side
        for _ in range(ahead):
            reduced = half(reduced)
        shapes[index + 2] = (reduced, reduced, filters * (4 if variant in BOTTLENECK else 1))
    return shapes


@pytest.mark.parametrize("variant", sweep(VARIANTS))
def test_every_stage_has_the_shape_of_the_papers_tables(variant):
    for size in (64, 97):
        model = create_model(variant, input_shape=(size, size, 3), include_top=False)
        assert stage_shapes(model) == expected_shapes(variant, size)


@pytest.mark.parametrize("variant", sweep(VARIANTS, {"resnet18", "resnet18v2", "resnet20", "densenetbc40_12"}))
def test_gradients_reach_every_variable(variant):
    size = VARIANTS[variant].stem.smallest_size
    model = create_model(variant, input_shape=(size, size, 3), classes=3, classifier_activation=None)
    images = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype("float32")

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(images, training=True)[:, 0] ** 2)
        return tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    for weight, gradient in zip(model.trainable_weights, gradients(), strict=True):
        assert gradient is not None and np.isfinite(gradient).all() and np.any(gradient), weight.path


@pytest.mark.parametrize("variant", ["resnet50d", "resnet50v2_keras", "densenet121", "resnet20"])
@pytest.mark.parametrize("shape", [(32, 32, 1), (None, None, 4), (33, 47, 3)])
def test_any_size_and_any_channels(variant, shape):
    model = create_model(variant, input_shape=shape, classes=7)
    images = np.zeros((2, shape[0] or 40, shape[1] or 52, shape[2]), "float32")
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize("variant", ["resnet20", "preactresnet110", "densenetbc100_12", "plainnet20"])
def test_cifar_variants_take_8_pixels(variant):
    assert create_model(variant, input_shape=(8, 8, 1))(np.zeros((1, 8, 8, 1), "float32")).shape == (1, 10)


def test_headless_and_pooled():
    assert keras_resdense.ResNet18(include_top=False).output_shape == (None, None, None, 512)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    maps = keras_resdense.ResNet18(include_top=False, input_shape=(64, 64, 3))
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = keras_resdense.ResNet18(include_top=False, pooling=pooling)
        pooled.set_weights(maps.get_weights())
        np.testing.assert_allclose(pooled(images), reduce(np.asarray(maps(images)), axis=(1, 2)), atol=1e-5)


def test_input_tensor_keeps_what_stands_before():
    images = keras.Input((40, 40, 1), name="grey")
    scaled = keras.layers.Rescaling(1 / 255, name="scale")(images)
    model = keras_resdense.ResNet20(input_tensor=scaled)
    assert model.input is images and model.get_layer("scale").output is scaled


def test_two_models_join_in_one():
    images = keras.Input((32, 32, 3))
    left, right = (keras_resdense.ResNet20(input_tensor=images, layer_prefix=f"{side}_") for side in ("left", "right"))
    joined = keras.Model(images, keras.layers.Add()([left.output, right.output]))
    assert joined.get_layer("left_stage2_block1_conv1") is not joined.get_layer("right_stage2_block1_conv1")
    picture = np.ones((1, 32, 32, 3), "float32")
    np.testing.assert_allclose(joined(picture), left(picture) + right(picture), atol=1e-6)


def test_rows_can_be_changed_without_editing_the_package():
    row = dataclasses.replace(VARIANTS["densenet121"], compression=0.7, growth_rate=16)
    model = create_model(row, input_shape=(32, 32, 3), classes=5)
    assert model.output_shape == (None, 5) and model.name == "densenet"


def test_builders_have_keras_applications_signature():
    theirs = inspect.signature(keras.applications.ResNet50).parameters
    ours = inspect.signature(keras_resdense.ResNet50).parameters
    shared = [name for name in theirs if name in ours]
    assert list(ours) == [*shared, "layer_prefix", "include_preprocessing"]
    defaults = {name: ours[name].default for name in shared if name not in ("weights", "name")}
    assert defaults == {name: theirs[name].default for name in defaults}
    assert ours["weights"].default is None
    assert inspect.signature(keras_resdense.ResNet20).parameters["classes"].default == 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_a_builder_with_documentation(variant):
    (builder,) = (getattr(keras_resdense, name) for name in keras_resdense.__all__ if name.lower() == variant)
    assert builder.__name__.lower() == variant and "input_shape:" in inspect.getdoc(builder)


def test_list_models():
    assert list_models("ResNet*d") == [f"resnet{depth}d" for depth in (18, 34, 50, 101, 152, 200)]
    assert list_models() == list(VARIANTS) and list_models("nothing") == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"variant": "resnet5O"}, "no variant 'resnet5O'. Closest: .*resnet50.*list_models"),
        ({"variant": 50}, "variant is 50"),
        ({"classes": 0}, "classes is 0"),
        ({"classes": 2.5}, "classes is 2.5"),
        ({"pooling": "mean"}, "pooling is 'mean'; it must be None, 'avg' or 'max'"),
        ({"input_shape": (31, 64, 3)}, r"shape is \(31, 64, 3\).*at least 32 pixels"),
        ({"input_shape": (64, 64)}, r"shape is \(64, 64\)"),
        ({"input_shape": (64, 64, 0)}, "at least one channel"),
        ({"input_shape": (64, 64, None)}, "at least one channel"),
        ({"classifier_activation": "softmaxx"}, "softmaxx"),
        ({"weights": "nowhere.weights.h5"}, "nowhere.weights.h5"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        create_model(**({"variant": "resnet50"} | arguments))


def test_other_shape_than_the_input_tensors_is_refused():
    with pytest.raises(ValueError, match="leave one out"):
        keras_resdense.ResNet18(input_tensor=keras.Input((64, 64, 3)), input_shape=(32, 32, 3))


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="set_image_data_format"):
            keras_resdense.ResNet18()
    finally:
        keras.config.set_image_data_format("channels_last")


PLAIN = """
import sys
sys.modules["keras_resdense"] = None
import keras, numpy as np
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    np.save(path + ".npy", model.predict_on_batch(np.load(path + ".images.npy")))
"""


#: Of the dense ones a shallow row always, because saving and opening take seconds for each block.
SHALLOW = dataclasses.replace(VARIANTS["densenet40_12"], depths=(2, 2, 2))
OPENED = [[SHALLOW], ["densenet40_12"], ["resnet20", "resnet18d", "seresnet18", "resnet18v2"], ["resnet1202"]]


@pytest.mark.parametrize("variants", sweep(OPENED, OPENED[:1]))
def test_saved_files_open_in_plain_keras(variants, tmp_path):
    expected = {}
    for number, variant in enumerate(variants):
        model = create_model(variant, input_shape=(32, 32, 3))
        for weight in model.weights:
            # Without training, every residual unit doubles the variance: 600 of them pass float32's limits.
            if variant == "resnet1202" and weight.name == "gamma":
                weight.assign(weight * 0.1)
        path = str(tmp_path / f"{number}.keras")
        images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
        model.save(path)
        np.save(path + ".images.npy", images)
        expected[path] = model.predict_on_batch(images)
    subprocess.run([sys.executable, "-c", PLAIN, *expected], check=True)
    for path, outputs in expected.items():
        assert np.isfinite(outputs).all()
        np.testing.assert_allclose(np.load(path + ".npy"), outputs, rtol=1e-5, atol=1e-6)


def test_builders_say_statically_what_they_take():
    """Type checkers and editors read the protocol, and people read `create_model`."""
    protocol = list(inspect.signature(builders.Builder.__call__, eval_str=True).parameters.values())[1:]
    created = list(inspect.signature(create_model, eval_str=True).parameters.values())[1:]
    assert protocol == created
    (static,) = jedi.Script(
        "import keras_resdense\nkeras_resdense.ResNet50(", project=jedi.Project(ROOT)
    ).get_signatures()
    assert [parameter.name for parameter in static.params] == [parameter.name for parameter in created]


@pytest.mark.parametrize("name, variant", [("wide_resnet50_2", "wideresnet50_2"), ("resnetv2_50", "resnet50v2")])
def test_names_of_timm_are_known(name, variant):
    model = create_model(name, include_top=False)
    assert model.name == variant


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pretrained": True}, 'pass weights="imagenet"'),
        ({"num_classes": 3}, "pass classes=…"),
        ({"in_chans": 1}, "pass input_shape"),
        ({"features_only": True}, "feature_extractor"),
    ],
)
def test_arguments_of_timm_and_torchvision_are_explained(options, message):
    for build in (keras_resdense.ResNet18, lambda **options: create_model("resnet18", **options)):
        with pytest.raises(TypeError, match=f"'{next(iter(options))}' is an argument of timm and .*{message}"):
            build(**options)


def test_a_tag_of_timm_is_explained():
    with pytest.raises(ValueError, match="the variant 'resnet50' with weights='a1_in1k'"):
        create_model("resnet50.a1_in1k")


@pytest.mark.parametrize("shape", [224, "abc", (224, 224), (224, 224, 0), (7, 224, 3), (224.5, 224, 3), (None,) * 3])
def test_shapes_that_are_none_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"The input's shape is {shape!r}; it must be (height, width")):
        keras_resdense.ResNet18(input_shape=shape)


def test_numbers_of_numpy_are_numbers():
    labels = np.arange(7)
    model = keras_resdense.ResNet20(classes=labels.max() + 1, input_shape=np.zeros((8, 16, 3)).shape)
    assert model.output_shape == (None, 7)
    row = dataclasses.replace(keras_resdense.DENSENETS["densenetbc40_12"], growth_rate=np.int64(4))
    assert type(row.growth_rate) is int and create_model(row, classes=np.uint8(3)).output_shape == (None, 3)
    for classes in (0, True, 2.5, "10", np.float32(3)):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            keras_resdense.ResNet20(classes=classes)
