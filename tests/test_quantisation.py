"""Quantised values, and the signal-to-noise report compared with the measurements of the exports."""

import math

import keras
import numpy as np
import pytest

from keras_resdense.exporting.exporter import Extras
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.quantisation import dequantise, quantise, signal_to_noise
from tests.test_export import some_images, tiny, write
from tests.test_folding import build, shrunk

BYTES = {"dtype": np.int8, "quantization_parameters": {"scales": np.array([0.5]), "zero_points": np.array([-3])}}
FLOATS = {"dtype": np.float32, "quantization_parameters": {"scales": np.array([]), "zero_points": np.array([])}}

FORMATS = ("tflite", "tflite_int8", "tflite_int16x8")


def test_values_become_steps_and_back():
    values = np.array([-1.0, 0.0, 0.2, 0.3, 1e6])
    np.testing.assert_array_equal(quantise(values, BYTES), np.array([-5, -3, -3, -2, 127], "int8"))
    np.testing.assert_array_equal(dequantise(quantise(values, BYTES), BYTES), [-1.0, 0.0, 0.0, 0.5, 65.0])
    np.testing.assert_array_equal(dequantise(quantise(values, FLOATS), FLOATS), values.astype("float32"))


@pytest.mark.sweep
def test_noise_of_every_layer(tmp_path):
    model, images = tiny(), some_images(16)
    made = {name: write(model, tmp_path / EXPORTERS[name].file_name, name, images) for name in FORMATS}
    reports = {name: signal_to_noise(row.path, made["tflite"].path, images) for name, row in made.items()}
    convolutions = [name for name in reports["tflite"] if "conv" in name]
    assert len(convolutions) >= 7 and set(reports["tflite"].values()) == {math.inf}
    assert reports["tflite"].keys() == reports["tflite_int8"].keys()
    for name in FORMATS[1:]:
        assert list(reports[name].values())[-1] == pytest.approx(-20 * math.log10(made[name].noise), abs=1.5)
    assert all(reports["tflite_int16x8"][name] > reports["tflite_int8"][name] > 10 for name in convolutions)
    with pytest.raises(ValueError, match="have 1 of .* operations in common: export both"):
        other = write(tiny(name="other"), tmp_path / "other.tflite", "tflite", images[:1])
        signal_to_noise(made["tflite"].path, other.path, images[:1])


def test_channels_that_vary_little_survive_in_dense_blocks(tmp_path):
    model, images = build(shrunk("densenetbc100_12")), some_images(16).astype("float32")
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            (kernel,) = layer.get_weights()
            layer.set_weights([kernel * 10 ** random.uniform(-1, 0.5, kernel.shape[-1])])
    for _ in range(40):
        model(images, training=True)
    paths = {name: tmp_path / name for name in FORMATS[:2]}
    for name, path in paths.items():
        EXPORTERS[name].write(EXPORTERS[name].prepare(model), path, Extras(images=images, calibration=images))
    ratios = signal_to_noise(paths["tflite_int8"], paths["tflite"], images)
    assert min(ratios.values()) > 20
