"""fold_batch_norm: the same numbers from the original network and from its rewritten form."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_resdense
from keras_resdense import count_macs
from keras_resdense.exporting.folding import fold_batch_norm, in_float32, rewrite_for_phones
from keras_resdense.graph import all_layers
from keras_resdense.networks.orders import ORDERS

REPRESENTATIVES = [
    "resnet18d",
    "resnet50v1",
    "resnext50_32x4d",
    "seresnet18",
    "plainnet18",
    "resnet50v2",
    "resnet50v2_keras",
    "densenet121",
    "resnet20",
    "preactresnet164",
    "densenet40_12",
    "densenetbc100_12",
]


def shrunk(name):
    """Returns the row of a variant with its special features, but two stages and few layers."""
    row = keras_resdense.VARIANTS[name]
    if isinstance(row, keras_resdense.DenseNet):
        return dataclasses.replace(row, depths=(2, 2), growth_rate=8)
    return dataclasses.replace(row, depths=(1, 2), filters=tuple(filters // 4 for filters in row.filters[:2]))


ROWS = [pytest.param(shrunk(name), id=name) for name in REPRESENTATIVES]
WHOLE = [pytest.param(name, marks=pytest.mark.sweep) for name in keras_resdense.VARIANTS]


def norms(model):
    return [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


def randomize(model):
    """Gives batch norms random statistics and some negative scales. They are small in deep networks."""
    random = np.random.default_rng(0)
    layers = norms(model)
    for layer in layers:
        channels = layer.gamma.shape
        scale = random.uniform(0.5, 1.5, channels) * random.choice([1, 1, 1, -1], channels) * min(1, 60 / len(layers))
        layer.set_weights(
            [scale, random.normal(0, 0.2, channels), random.normal(0, 0.2, channels), random.uniform(0.5, 2, channels)]
        )
    return model


def assert_same(model, other, images=None, tolerance=1e-5):
    if images is None:
        images = np.random.default_rng(1).uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
    expected, outputs = (np.asarray(m(images), "float64") for m in (model, other))
    assert np.abs(expected).max() > 0
    assert np.abs(outputs - expected).max() <= tolerance * np.abs(expected).max()


def build(variant, channels=3, **options):
    images = keras.Input((32, 32, channels), name="images")
    x = keras.layers.Rescaling([1 / 60] * channels, [-2.0] * channels, name="normalise")(images)
    options = {"classifier_activation": None, **options}
    return randomize(keras_resdense.create_model(variant, input_tensor=x, **options))


@pytest.mark.parametrize("variant", ROWS + WHOLE)
def test_every_variant_computes_the_same_without_batch_norm_and_as_phones_run_it(variant):
    model = build(variant)
    assert norms(model)
    for rewrite in (fold_batch_norm, rewrite_for_phones):
        rewritten = rewrite(model)
        assert not norms(rewritten)
        assert_same(model, rewritten)


@pytest.mark.parametrize("channels, order", [(1, order) for order in ORDERS] + [(4, "original")])
def test_every_order_and_number_of_channels(channels, order):
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], order=order, depths=(1, 1, 1))
    model = build(row, channels)
    assert_same(model, fold_batch_norm(model))


def test_without_top():
    model = build(shrunk("resnet50v2"), include_top=False)
    assert_same(model, fold_batch_norm(model))


def test_a_residual_network_keeps_no_layer_for_its_norms():
    folded = fold_batch_norm(build(shrunk("resnet18")))
    kinds = {type(layer).__name__ for layer in folded.layers if not isinstance(layer, keras.layers.InputLayer)}
    assert kinds == {
        "DepthwiseConv2D", "Conv2D", "ZeroPadding2D", "MaxPooling2D", "Activation", "Add",
        "GlobalAveragePooling2D", "Dense",
    }  # fmt: skip
    assert [layer.name for layer in folded.layers if isinstance(layer, keras.layers.DepthwiseConv2D)] == ["normalise"]


def test_the_original_stays_as_it_is():
    model = build(shrunk("resnet20"))
    before = [weight.copy() for weight in model.get_weights()]
    config = model.to_json()
    fold_batch_norm(model)
    assert model.to_json() == config
    for weight, kept in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_only_plain_keras_is_in_the_saved_file(tmp_path):
    folded = fold_batch_norm(build(shrunk("preactresnet164")))
    assert "keras_resdense" not in folded.to_json()
    folded.save(tmp_path / "model.keras")
    assert_same(folded, keras.saving.load_model(tmp_path / "model.keras"), tolerance=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_after_training(frozen):
    model = build(shrunk("resnet20"), classes=3, classifier_activation="softmax")
    for layer in model.layers[:-1]:
        layer.trainable = not frozen
    model.compile("sgd", "sparse_categorical_crossentropy")
    random = np.random.default_rng(0)
    model.fit(random.uniform(0, 255, (8, 32, 32, 3)), random.integers(0, 3, 8), verbose=0)
    assert_same(model, fold_batch_norm(model))


def test_a_model_trained_in_mixed_precision_is_computed_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build(shrunk("resnet20"))
    finally:
        keras.config.set_dtype_policy("float32")
    whole = in_float32(model)
    assert norms(whole)
    assert {layer.compute_dtype for layer in whole.layers} == {"float32"}
    assert_same(whole, fold_batch_norm(model))
    assert_same(model, whole, tolerance=0.05)


def test_nested_and_sequential_models():
    base = build(shrunk("resnet20"), include_top=False)
    model = keras.Sequential([keras.Input((32, 32, 3)), base, keras.layers.Flatten(), keras.layers.Dense(4)])
    folded = fold_batch_norm(model)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded._flatten_layers())
    assert_same(model, folded)


def small(*layers, shape=(6, 6, 3)):
    images = keras.Input(shape)
    x = images
    for layer in layers:
        x = layer(x)
    return randomize(keras.Model(images, x))


def test_layers_between_convolution_and_norm():
    L = keras.layers
    model = small(L.Conv2D(4, 3), L.Dropout(0.5), L.AveragePooling2D(2, padding="same"), L.BatchNormalization())
    folded = fold_batch_norm(model)
    assert [type(layer).__name__ for layer in folded.layers[1:]] == ["Conv2D", "Dropout", "AveragePooling2D"]
    assert_same(model, folded)


def test_phones_pool_before_a_convolution_and_by_one():
    L = keras.layers
    images = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 1)(images)
    pooled = L.AveragePooling2D(2)(L.Conv2D(4, 1)(x))
    strided = L.Conv2D(4, 1, strides=2)(x)
    model = keras.Model(images, L.Add()([pooled, strided]))
    rewritten = rewrite_for_phones(model)
    assert_same(model, rewritten)
    assert count_macs(model) - count_macs(rewritten) == 6 * 4 * (8 * 8 - 4 * 4)
    assert not any(isinstance(layer, L.AveragePooling2D) for layer in rewritten.layers)
    uneven = small(L.AveragePooling2D(2, padding="same"), L.AveragePooling2D(3, strides=2), shape=(5, 7, 3))
    assert_same(uneven, rewrite_for_phones(uneven))


def test_channels_of_a_dense_block_get_one_range_on_phones():
    model = build(dataclasses.replace(shrunk("densenet121"), dropout=0.2))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    for norm in ("stage2_transition_bn", "final_bn"):
        *_, mean, variance = model.get_layer(norm).get_weights()
        reach = abs(mean) + 3 * np.sqrt(variance + model.get_layer(norm).epsilon)
        read, rewritten = (
            keras.Model(m.inputs[0], m.get_layer(norm).input)(images) for m in (model, rewrite_for_phones(model))
        )
        np.testing.assert_allclose(rewritten, read / reach, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("read", [lambda x: keras.layers.Conv2D(2, 1)(x), keras.activations.relu, lambda x: x])
def test_a_dense_block_that_others_read_keeps_its_ranges(read):
    L = keras.layers
    images = keras.Input((6, 6, 3))
    first = L.Conv2D(4, 3, padding="same", name="first")(images)
    second = L.Conv2D(2, 3, padding="same")(L.BatchNormalization()(first))
    whole = L.BatchNormalization()(L.Concatenate()([first, second]))
    model = randomize(keras.Model(images, [whole, read(first)]))
    rewritten = rewrite_for_phones(model)
    kept = zip(model.get_layer("first").get_weights(), rewritten.get_layer("first").get_weights(), strict=True)
    assert all(np.array_equal(*pair) for pair in kept)


def test_zero_padding_between_them_only_where_nothing_is_added():
    L = keras.layers
    model = small(L.Conv2D(4, 3), L.ZeroPadding2D(2), L.BatchNormalization())
    assert_same(model, fold_batch_norm(model))
    assert isinstance(fold_batch_norm(model).layers[-1], L.DepthwiseConv2D)
    norm = model.layers[-1]
    gamma, *_, variance = norm.get_weights()
    norm.set_weights([gamma, np.zeros(4), np.zeros(4), variance])
    assert_same(model, fold_batch_norm(model))
    assert isinstance(fold_batch_norm(model).layers[-1], L.ZeroPadding2D)


def test_operations_between_layers():
    L = keras.layers
    images = keras.Input((6, 6, 3))
    x = L.BatchNormalization()(L.Conv2D(4, 3)(images / 255.0))
    x = L.Add()([keras.ops.relu(x) + 1.0, x])
    model = randomize(keras.Model(images, keras.ops.mean(x, axis=(1, 2))))
    for rewrite in (fold_batch_norm, rewrite_for_phones, in_float32):
        assert_same(model, rewrite(model))


def test_norms_of_other_layers():
    L = keras.layers
    options = {"center": False, "scale": False}
    model = small(
        L.DepthwiseConv2D(3, depth_multiplier=2), L.BatchNormalization(), L.BatchNormalization(momentum=0.5),
        L.Conv2D(4, 3, activation="relu"), L.BatchNormalization(axis=3),
        L.Flatten(), L.Dense(5), L.BatchNormalization(),
    )  # fmt: skip
    folded = fold_batch_norm(model)
    assert not norms(folded)
    assert_same(model, folded)
    bare = keras.Sequential([keras.Input((6, 6, 3)), L.BatchNormalization(**options), L.BatchNormalization(axis=1)])
    assert len(norms(fold_batch_norm(bare))) == 1
    assert_same(bare, fold_batch_norm(bare))


def test_a_convolution_that_others_read_or_that_is_called_twice_is_left_alone():
    L = keras.layers
    images = keras.Input((6, 6, 3))
    shared = L.Conv2D(3, 3, padding="same")
    x = shared(images)
    y = L.BatchNormalization()(x)
    z = L.BatchNormalization()(shared(y))
    model = randomize(keras.Model(images, L.Add()([x, y, z])))
    folded = fold_batch_norm(model)
    assert not norms(folded)
    assert_same(model, folded)


def test_pixels_of_a_byte_keep_their_rescaling():
    images = keras.Input((32, 32, 1), dtype="uint8")
    model = keras_resdense.ResNet20(input_tensor=keras.layers.Rescaling(1 / 255)(images))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype("uint8")
    assert_same(model, fold_batch_norm(model), pixels)


def test_a_model_without_a_graph_is_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="is a Own whose graph of layers is unknown; pass a functional"):
        fold_batch_norm(Own(name="own"))
    with pytest.raises(ValueError, match="starts with keras.Input"):
        fold_batch_norm(keras.Sequential([keras.layers.Dense(1)]))
