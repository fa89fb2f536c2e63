"""The report on a `.tflite`, compared with counts by hand, published MACs and the lifetimes of tensors."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import keras_resdense
from keras_resdense.exporting.device_report import device_report
from keras_resdense.exporting.exporter import Extras
from keras_resdense.exporting.formats import EXPORTERS

#: Billions of multiply-accumulates at 224 pixels, as the table of torchvision's classification weights gives them.
#: Exported dense networks pool before the 1×1 convolution of a transition, which saves three quarters of the three.
PUBLISHED = {
    "resnet18": 1.81,
    "resnet50": 4.09,
    "resnext50_32x4d": 4.23,
    "wide_resnet50_2": 11.40,
    "densenet121": 2.83 - 0.23,
}
L = keras.layers


def write(model, path, format, **changes):
    images = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
    exporter = dataclasses.replace(EXPORTERS[format], **changes)
    exporter.write(exporter.prepare(model), path, Extras(images=images, calibration=images))
    return device_report(path)


def network(middle=None):
    images = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", activation="relu")(images)
    x = middle(x) if middle else x
    x = L.DepthwiseConv2D(3, 2, padding="same")(x)
    x = L.Conv2D(6, 3, padding="same", groups=2)(x)
    return keras.Model(images, L.Dense(5)(L.GlobalAveragePooling2D()(x)))


def alive_at_once(path):
    """Returns the largest number of bytes of live activations, a lower bound for every planner."""
    interpreter = Interpreter(str(path))
    nodes = [node for node in interpreter._get_ops_details() if node["op_name"] != "DELEGATE"]
    sizes = {
        tensor["index"]: math.prod(tensor["shape"].tolist()) * np.dtype(tensor["dtype"]).itemsize
        for tensor in interpreter.get_tensor_details()
    }
    (source,) = interpreter.get_input_details()
    born = {source["index"]: 0} | {made: place for place, node in enumerate(nodes) for made in node["outputs"]}
    dead = {index: place for place, node in enumerate(nodes) for index in [*node["inputs"], *node["outputs"]]}
    return max(
        sum(sizes[index] for index in born if born[index] <= place <= dead[index]) for place in range(len(nodes))
    )


def test_work_and_memory_as_counted_by_hand(tmp_path):
    model = network()
    # Equal constants are stored once: all are made different.
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape) for weight in model.weights])
    report = write(model, tmp_path / "m.tflite", "tflite")
    first, depthwise, grouped, dense = 8 * 8 * 4 * 27, 4 * 4 * 4 * 9, 4 * 4 * 6 * 9 * 2, 6 * 5
    assert report.macs == first + depthwise + grouped + dense
    weights = 4 * (4 * 27 + 4 + 4 * 9 + 4 + 6 * 18 + 6 + 6 * 5 + 5)
    # Beside them there are only the axes of the mean.
    assert weights <= report.weights <= weights + 16
    activations = 4 * (8 * 8 * 3 + 2 * 8 * 8 * 4 + 2 * 4 * 4 * 4 + 2 * 4 * 4 * 6 + 2 * 6 + 5)
    assert report.moved == activations + report.weights
    assert report.operators == {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "MEAN": 1}


@pytest.mark.parametrize("format", ["tflite", "tflite_float16", "tflite_int8"])
def test_the_arena_is_hardly_more_than_what_lives_at_once(format, tmp_path):
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], depths=(1, 1, 1))
    model = keras_resdense.create_model(row, input_shape=(32, 32, 3))
    report = write(model, tmp_path / "m.tflite", format)
    if format == "tflite_float16":
        # Its weights become float32 once: they are no activations.
        assert report.arena == write(model, tmp_path / "f.tflite", "tflite").arena
    else:
        alive = alive_at_once(tmp_path / "m.tflite")
        assert alive <= report.arena <= 1.2 * alive


def test_an_operator_in_the_middle_that_no_accelerator_takes_is_named(tmp_path):
    report = write(network(lambda x: keras.ops.arctan2(x, x + 1)), tmp_path / "m.tflite", "tflite")
    assert (report.partitions, report.outside) == (2, {"ATAN2": 1})
    assert report.outside_gpu == {"ATAN2": 1}
    assert str(report).count("outside: 1 ATAN2") == 2 and "2 partitions" in str(report)


def test_the_softmax_of_a_classifier_in_bytes_is_named(tmp_path):
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, L.Softmax()(network()(images)))
    report = write(model, tmp_path / "m.tflite", "tflite_int8", pixels="int8")
    assert (report.partitions, report.outside) == (1, {"SOFTMAX": 1})
    assert "classifier_activation=None" in report.changes[0]


def test_what_to_change_is_named_and_helps(tmp_path):
    bytes_in = write(network(), tmp_path / "uint8.tflite", "tflite_int8")
    assert (bytes_in.partitions, bytes_in.outside, bytes_in.outside_gpu) == (1, {"QUANTIZE": 2}, {})
    assert 'pixels="int8"' in bytes_in.changes[0] and bytes_in.changes[0] in str(bytes_in)
    signed = write(network(), tmp_path / "int8.tflite", "tflite_int8", pixels="int8")
    assert (signed.partitions, signed.outside, signed.changes) == (1, {}, ())
    wide = write(network(), tmp_path / "int16.tflite", "tflite_int16x8")
    assert wide.partitions == 0 and wide.outside == wide.operators
    assert "export it as tflite_int8" in wide.changes[0]
    assert wide.outside_gpu == wide.operators


@pytest.mark.sweep
@pytest.mark.parametrize("peer, published", PUBLISHED.items())
def test_macs_are_those_that_torchvision_publishes(peer, published, tmp_path):
    name = peer.replace("wide_resnet", "wideresnet")
    model = keras_resdense.create_model(name, input_shape=(224, 224, 3), classes=1000)
    # Batch norms that become convolutions count here, but not there; moved transitions count less here.
    assert write(model, tmp_path / "m.tflite", "tflite").macs / 1e9 == pytest.approx(published, rel=0.03)


def test_bad_files(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"no model at all")
    for path in (tmp_path / "m.tflite", tmp_path / "none.tflite"):
        with pytest.raises(ValueError, match=r"\.tflite is not a TFLite model, or it is damaged"):
            device_report(path)
