"""The grammar of layer names, compared with the names that builders give."""

import dataclasses

import keras
import pytest

import keras_resdense
from keras_resdense.graph import Place, all_layers, calls, place_of

NAMES = {
    "stem_conv2": Place(unit="stem", kind="stem", stage=1, role="conv", number=2),
    "stem_pool_window": Place(unit="stem", kind="stem", stage=1, role="pool_window"),
    "stage4_block23_shortcut_conv": Place(unit="stage4_block23", kind="block", stage=4, index=23, role="shortcut_conv"),
    "stage2_block1_conv2_pad": Place(unit="stage2_block1", kind="block", stage=2, index=1, role="conv_pad", number=2),
    "stage3_layer12_out": Place(unit="stage3_layer12", kind="layer", stage=3, index=12, role="out"),
    "stage2_transition_bn": Place(unit="stage2_transition", kind="transition", stage=2, role="bn"),
    "stage2_out": Place(unit="stage2", kind="stage", stage=2, role="out"),
    "final_relu": Place(unit="final", kind="final", role="relu"),
    "predictions": Place(unit="head", kind="head", role="predictions"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_say_where_a_layer_stands(name):
    assert place_of(name) == place_of(name, "") == NAMES[name]
    assert place_of(f"left_{name}") == place_of(f"left_{name}", "left_") == NAMES[name]
    assert place_of(f"left_{name}", "") is None and place_of(name, "left_") is None


@pytest.mark.parametrize("name", ["images", "conv1_conv", "stage2", "stage_block1_conv1", "head", "stem_conv1_bn"])
def test_other_names_say_nothing(name):
    assert place_of(name) is None


ROWS = [
    dataclasses.replace(keras_resdense.VARIANTS["resnet18d"], squeeze_excite=True, drop_path=0.1, output_stride=16),
    *(dataclasses.replace(keras_resdense.VARIANTS["resnet20"], order=order) for order in keras_resdense.ORDERS),
    dataclasses.replace(keras_resdense.VARIANTS["resnet20"], nested_stages=True, head_dropout=0.1),
    dataclasses.replace(keras_resdense.VARIANTS["densenetbc40_12"], dropout=0.1),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_builders_give_no_other_names(row):
    model = keras_resdense.create_model(row, input_shape=(32, 32, 3))
    unread = [layer.name for layer in all_layers(model) if place_of(layer.name, "") is None]
    assert unread == ["images"]


def test_calls_are_those_of_the_model_alone_and_in_order():
    """Fails if Keras moves the private attributes that `calls` uses."""
    images = keras.Input((8, 8, 3), name="input")
    shared = keras.layers.ReLU(name="shared")
    model = keras.Model(images, keras.layers.Add(name="add")([shared(images), images]))
    keras.Model(images, shared(shared(images)))
    assert [call.operation.name for call in calls(model)] == ["input", "shared", "add"]
