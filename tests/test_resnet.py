"""Residual blocks and rows: the effect of each field on shapes, counts and values."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_resdense
from keras_resdense import (
    ResidualStyle,
    basic_block,
    bottleneck_block,
    count_parameters,
    identity_block,
    preactivation_unit,
    projection_block,
)

RESNET20 = keras_resdense.VARIANTS["resnet20"]


def tiny(**changes):
    """Builds a changed row of ResNet-20 for images of 16 pixels."""
    return keras_resdense.create_model(dataclasses.replace(RESNET20, **changes), input_shape=(16, 16, 3))


def kinds(model):
    """Lists the roles of a block's layers in order, by the second part of their names."""
    return [layer.name.split("_")[1].rstrip("0123456789") for layer in model.layers[1:]]


@pytest.mark.parametrize(
    "order, expected",
    {
        "original": "conv bn relu conv bn add out",
        "bn_after_addition": "conv bn relu conv add bn out",
        "relu_before_addition": "conv bn relu conv bn relu out",
        "relu_only_preactivation": "relu conv bn relu conv bn out",
        "full_preactivation": "bn relu conv bn relu conv out",
    }.items(),
)
def test_units_follow_figure_4(order, expected):
    images = keras.Input((8, 8, 16))
    model = keras.Model(images, basic_block(images, 16, style=ResidualStyle(order=order)))
    assert kinds(model) == expected.split()


@pytest.mark.parametrize("order", keras_resdense.ORDERS)
@pytest.mark.parametrize("block", [basic_block, bottleneck_block])
def test_every_order_fits_every_block_and_shortcut(order, block):
    for shortcut in ("A", "B", "C", None):
        model = tiny(order=order, block=block, shortcut=shortcut)
        assert model.output_shape == (None, 10)


def test_shortcuts_cost_what_section_3_3_says():
    projection = {"A": 0, "B": 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64}
    projection["C"] = projection["B"] + 3 * (16 * 16 + 2 * 16) + 2 * (32 * 32 + 2 * 32) + 2 * (64 * 64 + 2 * 64)
    plain = count_parameters(tiny(shortcut=None))
    assert {name: count_parameters(tiny(shortcut=name)) - plain for name in projection} == projection


def test_shortcut_a_is_the_strided_input_padded_with_zeros():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    inputs = keras.Input((8, 8, 4))
    style = ResidualStyle(order="full_preactivation", shortcut="A", zero_init_last_gamma=False)
    model = keras.Model(inputs, basic_block(inputs, 6, stride=2, style=style))
    model.get_layer("block_conv2").kernel.assign(np.zeros((3, 3, 6, 6)))
    outputs = np.asarray(model(images))
    np.testing.assert_array_equal(outputs[..., :4], images[:, ::2, ::2])
    assert not outputs[..., 4:].any()


@pytest.mark.parametrize("where, strides", {"1x1": (2, 1), "3x3": (1, 2)}.items())
def test_the_stride_stands_where_the_style_says(where, strides):
    images = keras.Input((8, 8, 16))
    style = ResidualStyle(strided_convolution=where)
    model = keras.Model(images, bottleneck_block(images, 8, stride=2, style=style))
    assert tuple(model.get_layer(f"block_conv{i}").strides[0] for i in (1, 2)) == strides
    assert model.output_shape == (None, 4, 4, 32)


def test_last_blocks_stride_in_keras_dialect():
    model = keras_resdense.ResNet50V2_Keras(include_top=False, input_shape=(64, 64, 3))
    sides = [model.get_layer(f"stage{stage}_block1_out").output.shape[1] for stage in (2, 3, 4, 5)]
    assert sides == [16, 8, 4, 2]


def test_groups_and_width_are_resnexts():
    images = keras.Input((8, 8, 256))
    model = keras.Model(images, bottleneck_block(images, 64, style=ResidualStyle(groups=32, base_width=4)))
    assert model.get_layer("block_conv2").kernel.shape == (3, 3, 4, 128)


def test_zero_init_starts_every_block_as_its_shortcut():
    inputs = keras.Input((8, 8, 16))
    style = ResidualStyle(zero_init_last_gamma=True)
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 16)).astype("float32")
    np.testing.assert_array_equal(keras.Model(inputs, basic_block(inputs, 16, style=style))(images), images)


def test_drop_path_grows_linearly_from_the_first_block():
    model = tiny(drop_path=0.4)
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    np.testing.assert_allclose(rates, np.linspace(0, 0.4, 9)[1:])


def test_first_activation_of_the_cifar_networks_stands_before_the_split():
    model = keras_resdense.PreActResNet110()
    first, second = (model.get_layer(f"stage2_block{i}_out").input[0] for i in (1, 2))
    assert first is model.get_layer("stage2_block1_relu1").output
    assert second is model.get_layer("stage2_block1_out").output


@pytest.mark.parametrize("variant", ["resnet50", "resnet18v2", "resnet50v2_keras"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride_sets_the_size_of_the_last_map(variant, stride):
    row = keras_resdense.VARIANTS[variant]
    dilated = keras_resdense.create_model(
        dataclasses.replace(row, output_stride=stride), include_top=False, input_shape=(64, 64, 3)
    )
    assert dilated.output_shape[1:3] == (64 // stride, 64 // stride)
    rates = {layer.dilation_rate[0] for layer in dilated.layers if isinstance(layer, keras.layers.Conv2D)}
    assert max(rates) == 32 // stride


def test_a_network_from_the_blocks_alone():
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv")(images)
    x = projection_block(x, 16, block=bottleneck_block, name="project")
    x = identity_block(x, 16, block=bottleneck_block, name="keep")
    x = preactivation_unit(x, 32, stride=2, name="preactivate")
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, keras.layers.Dense(4, activation="softmax")(x))
    assert [model.get_layer(name).output.shape[1:] for name in ("project_out", "keep_out", "preactivate_out")] == [
        (16, 16, 64),
        (16, 16, 64),
        (8, 8, 32),
    ]
    model.compile("sgd", "sparse_categorical_crossentropy")
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 32)
    pictures = random.normal(size=(32, 32, 32, 3)) + labels[:, None, None, None]
    history = model.fit(pictures, labels, batch_size=16, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_identity_block_refuses_other_channels():
    with pytest.raises(ValueError, match="makes 64 channels, but x has 32.*projection_block"):
        identity_block(keras.Input((8, 8, 32)), 16, block=bottleneck_block)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"order": "bn_last"}, "order is 'bn_last'; it must be one of"),
        ({"shortcut": "D"}, "shortcut is 'D'"),
        ({"strided_convolution": "2x2"}, "'3x3' or '1x1'"),
        ({"depths": ()}, "depths is"),
        ({"depths": (3, 0, 3)}, "depths is"),
        ({"depths": (3, 3)}, "filters is"),
        ({"groups": 0}, "groups is 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"drop_path": 0.1, "memory_efficient": True}, "drop_path is 0.1; it must be 0 with memory_efficient"),
        ({"head_dropout": -0.1}, "head_dropout is -0.1"),
        ({"batch_norm_momentum": 1.5}, "batch_norm_momentum is 1.5"),
        ({"batch_norm_epsilon": 0}, "batch_norm_epsilon is 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"output_stride": 32}, r"output_stride is 32; it must be None or one of \[1, 2, 4\]"),
        ({"strided_block": "middle"}, "strided_block is 'middle'"),
        ({"block": "basic"}, "block is 'basic'"),
        ({"order": "full_preactivation", "zero_init_last_gamma": True}, "zero_init_last_gamma is True"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RESNET20, **change)
