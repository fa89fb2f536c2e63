"""Dense blocks and rows."""

import dataclasses
import re

import keras
import numpy as np
import pytest

import keras_resdense
from keras_resdense import DenseStyle, count_parameters, dense_block, dense_layer, transition_layer
from tests.zoo_facts import CIFAR_PARAMETERS

ROW = keras_resdense.VARIANTS["densenetbc100_12"]


def test_a_layer_follows_section_3():
    images = keras.Input((8, 8, 24))
    for bottleneck, expected in ((True, "bn relu conv bn relu conv"), (False, "bn relu conv")):
        model = keras.Model(images, dense_layer(images, style=DenseStyle(growth_rate=12, bottleneck=bottleneck)))
        assert [layer.name.split("_")[1][:-1] for layer in model.layers[1:]] == expected.split()
        assert model.output_shape == (None, 8, 8, 12)
    assert model.layers[-1].kernel.shape == (3, 3, 24, 12)


def test_a_block_keeps_what_it_reads_and_appends_what_it_makes():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 5)).astype("float32")
    inputs = keras.Input((8, 8, 5))
    model = keras.Model(inputs, dense_block(inputs, 3, style=DenseStyle(growth_rate=4)))
    outputs = np.asarray(model(images))
    assert outputs.shape == (2, 8, 8, 5 + 3 * 4)
    np.testing.assert_array_equal(outputs[..., :5], images)


@pytest.mark.parametrize("compression, channels", [(1.0, 100), (0.5, 50), (0.29, 29), (0.7, 70), (0.015, 1)])
def test_a_transition_rounds_down(compression, channels):
    x = transition_layer(keras.Input((9, 8, 100)), compression)
    assert x.shape == (None, 4, 4, channels)


@pytest.mark.parametrize("compression", [0, -0.5, 1.01, 0.001])
def test_a_transition_refuses_other_compressions(compression):
    with pytest.raises(ValueError, match="it must be in"):
        transition_layer(keras.Input((8, 8, 100)), compression)


def derived_count(depths, growth, bottleneck, compression, stem_filters, classes=10):
    """Counts the parameters of a CIFAR network from the text of section 3 alone."""
    channels, total = stem_filters, 9 * 3 * stem_filters
    for block, depth in enumerate(depths):
        for _ in range(depth):
            if bottleneck:
                total += 2 * channels + channels * 4 * growth + 2 * 4 * growth + 9 * 4 * growth * growth
            else:
                total += 2 * channels + 9 * channels * growth
            channels += growth
        if block < len(depths) - 1:
            kept = int(channels * compression)
            total += 2 * channels + channels * kept
            channels = kept
    return total + 2 * channels + channels * classes + classes


@pytest.mark.parametrize("variant", [name for name in CIFAR_PARAMETERS if name.startswith("dense")])
def test_golden_counts_of_cifar_networks_follow_from_the_paper(variant):
    depth, growth = (int(number) for number in re.findall(r"\d+", variant))
    compressed = variant.startswith("densenetbc")
    layers = (depth - 4) // (6 if compressed else 3)
    knobs = (True, 0.5, 2 * growth) if compressed else (False, 1.0, 16)
    assert CIFAR_PARAMETERS[variant] == derived_count((layers,) * 3, growth, *knobs)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride_sets_the_size_of_the_last_map(stride):
    row = dataclasses.replace(keras_resdense.DENSENETS["densenet121"], output_stride=stride)
    dilated = keras_resdense.create_model(row, include_top=False, input_shape=(64, 64, 3))
    assert dilated.output_shape[1:3] == (64 // stride, 64 // stride)
    rates = {layer.dilation_rate[0] for layer in dilated.layers if isinstance(layer, keras.layers.Conv2D)}
    assert max(rates) == 32 // stride


def test_a_network_from_residual_and_dense_blocks():
    images = keras.Input((32, 32, 3))
    x = keras_resdense.projection_block(images, 16, name="project")
    x = dense_block(x, 3, style=DenseStyle(growth_rate=8), name="dense")
    x = transition_layer(x, 0.5, name="shrink")
    model = keras.Model(images, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))
    shapes = [model.get_layer(name).output.shape[1:] for name in ("project_out", "dense_layer3_out", "shrink_pool")]
    assert shapes == [(16, 16, 16), (16, 16, 40), (8, 8, 20)]


@pytest.mark.parametrize("growth", [1, 12, 40])
@pytest.mark.parametrize("bottleneck, compression", [(True, 0.5), (True, 0.7), (False, 1.0)])
def test_knobs_change_the_count_as_the_paper_says(growth, bottleneck, compression):
    row = dataclasses.replace(
        ROW, depths=(2, 3, 4), growth_rate=growth, bottleneck=bottleneck, compression=compression, stem_filters=16
    )
    model = keras_resdense.create_model(row)
    assert count_parameters(model) == derived_count((2, 3, 4), growth, bottleneck, compression, 16)


def test_dropout_follows_every_convolution_of_the_layers():
    model = keras_resdense.create_model(dataclasses.replace(ROW, depths=(2, 2, 2), dropout=0.2))
    assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [0.2] * 12


@pytest.mark.parametrize(
    "change, message",
    [
        ({"compression": 0}, r"compression is 0; it must be in \(0, 1\]"),
        ({"compression": 1.5}, "compression is 1.5"),
        ({"growth_rate": 0}, "growth_rate is 0; it must be a whole number of at least 1"),
        ({"growth_rate": 2.5}, "growth_rate is 2.5"),
        ({"dropout": 1}, "dropout is 1"),
        ({"stem_filters": 0}, "stem_filters is 0"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ROW, **change)
