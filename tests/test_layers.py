"""Basic layers, compared with Keras's and TensorFlow's own."""

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from keras_resdense import BatchNormalization, Convolution
from keras_resdense.networks import drop_ins, layers

IMAGES = np.random.default_rng(0).normal(2, 3, (8, 6, 5, 7)).astype("float32")
DIRECTION = np.random.default_rng(1).normal(size=IMAGES.shape).astype("float32")
PRECISIONS = {"float32": 1e-5, "mixed_bfloat16": 1e-2, "mixed_float16": 2e-3}


def pair(policy="float32", **options):
    """Returns our batch norm and Keras's with the same random weights."""
    both = [kind(dtype=policy, **options) for kind in (BatchNormalization, keras.layers.BatchNormalization)]
    random = np.random.default_rng(1)
    for layer in both:
        layer.build(IMAGES.shape)
    weights = [random.uniform(0.5, 1.5, weight.shape) for weight in both[0].weights]
    for layer in both:
        layer.set_weights(weights)
    return both


def run(layer, training):
    """Returns outputs, gradients by images and trainable weights, and the weights afterwards."""
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * DIRECTION)
    trainable = [weight.value for weight in layer.trainable_weights]
    return [tf.cast(outputs, tf.float32), *tape.gradient(loss, [images, *trainable]), *layer.get_weights()]


def assert_close(ours, theirs, tolerance):
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=tolerance, atol=tolerance * np.abs(their).max())


@pytest.mark.parametrize("policy", PRECISIONS)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_computes_what_keras_computes(policy, training):
    ours, theirs = pair(policy, momentum=0.9, epsilon=1e-5)
    assert ours(IMAGES, training=training).dtype == theirs(IMAGES, training=training).dtype
    assert_close(run(ours, training), run(theirs, training), PRECISIONS[policy])


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"axis": 1}, {"dtype": "float64"}])
def test_batch_norm_options(options):
    options = {"policy": options.pop("dtype")} if "dtype" in options else options
    ours, theirs = pair(**options)
    assert_close(run(ours, True), run(theirs, True), 1e-5)


def test_frozen_batch_norm_keeps_its_statistics():
    ours, theirs = pair()
    ours.trainable = theirs.trainable = False
    before = ours.get_weights()
    assert_close(run(ours, True), run(theirs, True), 1e-5)
    for old, new in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_batch_norm_of_vectors_and_of_masked_images_is_keras_own():
    vectors = IMAGES.reshape(-1, 7)
    ours, theirs = (kind() for kind in (BatchNormalization, keras.layers.BatchNormalization))
    np.testing.assert_array_equal(ours(vectors, training=True), theirs(vectors, training=True))
    mask = np.random.default_rng(2).uniform(size=IMAGES.shape[:-1]) > 0.5
    ours, theirs = pair()
    np.testing.assert_array_equal(ours(IMAGES, training=True, mask=mask), theirs(IMAGES, training=True, mask=mask))


@pytest.mark.parametrize("policy", PRECISIONS)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_runs_on_the_fused_kernel(policy, training):
    layer, _ = pair(policy)
    graph = tf.function(lambda images: layer(images, training=training)).get_concrete_function(IMAGES).graph
    assert "FusedBatchNormV3" in {operation.type for operation in graph.get_operations()}


def test_a_saved_model_names_nothing_but_keras(tmp_path):
    images = keras.Input((8, 8, 3))
    x = layers.convolve(images, Convolution(4, 3, 2), layers.Style(weight_decay=1e-4), "conv")
    x = layers.pad_channels(layers.batch_norm(x, layers.Style(), "bn"), 6, "pad")
    keras.Model(images, layers.drop_path(x, 0.5, "drop")).save(tmp_path / "model.keras")
    config = zipfile.ZipFile(tmp_path / "model.keras").read("config.json").decode()
    modules = {value for key, value in pairs(json.loads(config)) if key == "module" and value}
    assert modules and all(module.split(".")[0] in ("keras", "builtins") for module in modules), modules
    assert "keras_resdense" not in config


def pairs(node):
    """Yields every key and value of nested dicts and lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from pairs(value)
    elif isinstance(node, list):
        for value in node:
            yield from pairs(value)


def test_kernels_start_he_normal_over_the_fan_out():
    x = layers.convolve(keras.Input((8, 8, 64)), Convolution(256, 3), layers.Style(), "conv")
    kernel = np.asarray(x._keras_history.operation.kernel)
    deviation = np.sqrt(2 / (3 * 3 * 256))
    assert kernel.std() == pytest.approx(deviation, rel=0.01)
    assert abs(kernel.mean()) < deviation / 100
    shares = [(np.abs(kernel) < reach * deviation).mean() for reach in (1, 2, 3)]
    assert shares == pytest.approx([0.6827, 0.9545, 0.9973], abs=3e-3)


def test_initializer_repeats_its_seed():
    first, again, other = (drop_ins.RandomNormal(stddev=0.1, seed=seed)((5, 5)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 0


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel_size, dilation", [(3, 1), (7, 1), (3, 2)])
def test_padding_is_symmetric(size, kernel_size, dilation):
    images = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype("float32")
    for stride in (1, 2) if dilation == 1 else (1,):
        convolution = Convolution(2, kernel_size, stride, dilation=dilation)
        inputs = keras.Input(images.shape[1:])
        model = keras.Model(inputs, layers.convolve(inputs, convolution, layers.Style(), f"conv{stride}"))
        reach = dilation * (kernel_size // 2)
        padding = [[0, 0], [reach, reach], [reach, reach], [0, 0]]
        expected = tf.nn.conv2d(images, model.layers[-1].kernel, stride, padding, dilations=dilation)
        np.testing.assert_allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
def test_max_pool_pads_with_infinity(size):
    images = -np.random.default_rng(0).uniform(1, 2, (1, size, size, 3)).astype("float32")
    expected = tf.nn.max_pool2d(images, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(layers.max_pool(keras.ops.convert_to_tensor(images), "pool"), expected)


def test_pad_channels_appends_zeros():
    padded = np.asarray(layers.pad_channels(keras.ops.convert_to_tensor(IMAGES), 10, "pad"))
    np.testing.assert_array_equal(padded[..., :7], IMAGES)
    assert padded.shape == (8, 6, 5, 10) and not padded[..., 7:].any()


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, layers.drop_path(inputs, 0.25, "drop"))
    outputs = np.asarray(model(np.ones((4000, 4, 4, 3), "float32"), training=True)).reshape(4000, -1)
    assert (outputs == outputs[:, :1]).all()
    np.testing.assert_allclose(np.unique(outputs), [0, 4 / 3], rtol=1e-6)
    assert outputs.mean() == pytest.approx(1, abs=0.03)


def test_weight_decay_adds_its_multiple_of_kernels_to_the_gradient_and_nothing_else():
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], weight_decay=0.01)
    model = keras_resdense.create_model(row, input_shape=(8, 8, 3))
    with tf.GradientTape() as tape:
        penalty = tf.add_n(model.losses)
    weights = [weight.value for weight in model.trainable_weights]
    for weight, gradient in zip(model.trainable_weights, tape.gradient(penalty, weights), strict=True):
        if weight.name == "kernel":
            np.testing.assert_allclose(gradient, 0.01 * np.asarray(weight), rtol=1e-5)
        else:
            assert gradient is None


@pytest.mark.parametrize("momentum, nesterov, devices", [(0.9, True, 2), (0.9, False, 1), (0.0, False, 1)])
def test_sgd_computes_keras_s_numbers(momentum, nesterov, devices):
    random, trained = np.random.default_rng(0), []
    inputs, targets = random.normal(size=(32, 5)).astype("float32"), random.normal(size=(32, 3)).astype("float32")
    for kind in (drop_ins.SGD, keras.optimizers.SGD):
        keras.utils.set_random_seed(0)
        replicas = [f"CPU:{number}" for number in range(devices)]
        with tf.distribute.MirroredStrategy(replicas, tf.distribute.ReductionToOneDevice()).scope():
            model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)])
            rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
            model.compile(kind(rate, momentum=momentum, nesterov=nesterov, use_ema=True), "mse")
        model.fit(inputs, targets, batch_size=8, epochs=2, shuffle=False, verbose=0)
        trained.append([variable.numpy() for variable in model.weights + model.optimizer.variables])
    for ours, kerases in zip(*trained, strict=True):
        np.testing.assert_allclose(ours, kerases, rtol=1e-6, atol=1e-7)


def test_sgd_takes_the_sparse_gradients_of_an_embedding():
    trained = []
    for kind in (drop_ins.SGD, keras.optimizers.SGD):
        model = keras.Sequential([keras.layers.Embedding(6, 2, embeddings_initializer="ones"), keras.layers.Flatten()])
        model.compile(kind(0.1, momentum=0.9), "mse")
        model.fit(np.array([[1, 2], [2, 5]]), np.zeros((2, 4)), epochs=3, verbose=0)
        trained.append(model.get_weights())
    np.testing.assert_allclose(*trained, rtol=1e-6)
