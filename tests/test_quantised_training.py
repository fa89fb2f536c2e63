"""Quantisation-aware training: the same answers from Keras and from LiteRT's kernels of whole numbers."""

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_resdense import quantisation_aware
from keras_resdense.data.contract import ImageContract
from keras_resdense.exporting.device_report import device_report
from keras_resdense.exporting.export import export
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.quantised_training import has_4_bit_kernels, settled
from keras_resdense.exporting.rounding import FakeQuantise
from keras_resdense.training import train
from tests.test_export import CLASSES, some_images, tiny
from tests.test_folding import REPRESENTATIVES, build, shrunk
from tests.tiny import RECIPE, install
from tests.zoo_facts import sweep

#: One with concatenations, which need most; the others only in the sweep.
NETWORKS = sweep(REPRESENTATIVES, {"densenetbc100_12"})


def aware(model=None, count=32, **options):
    model = model or tiny()
    images = some_images(count, model.input_shape[-1]).astype("float32")
    return quantisation_aware(model, images, **options), images


def trained(model, images, steps=4, **options):
    """Trains for some steps, which move the ranges, too."""
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", **options)
    classes = np.arange(len(images)) % model.output_shape[-1]
    return model.fit(images, classes, batch_size=16, epochs=steps * 16 // len(images), shuffle=False, verbose=0)


def assert_equal(path, model, images):
    """Compares the bytes of a file with the network's own."""
    found = EXPORTERS["tflite_int8"].read(path)(images)
    np.testing.assert_allclose(256 * found, 256 * model.predict(images, verbose=0), atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_the_network_does(name, tmp_path):
    model, images = aware(build(shrunk(name), classifier_activation="softmax", classes=CLASSES))
    trained(model, images)
    made = export(model, tmp_path / "m.tflite", "tflite_int8", images)
    counts = device_report(tmp_path / "m.tflite").operators
    # Bytes are made signed at the input, and unsigned at the output: nothing is requantised in between.
    assert counts["QUANTIZE"] == 2 and "DEQUANTIZE" not in counts
    assert made.agreement >= 0.9 and made.noise < 0.03
    assert_equal(made.path, model, images)


def test_it_learns_and_its_ranges_follow():
    model, images = aware()
    fixed = [layer for layer in model.layers if not layer.trainable]
    assert [layer.name for layer in fixed] == ["normalise", "stage3_block1_shortcut_pad", "stage4_block1_shortcut_pad"]
    before = {layer.name: layer.get_weights() for layer in model.layers if isinstance(layer, FakeQuantise)}
    losses = trained(model, images, steps=40).history["loss"]
    assert losses[-1] < 0.95 * losses[0]
    assert all(np.array_equal(layer.get_weights()[0], model.get_layer(layer.name).get_weights()[0]) for layer in fixed)
    kept = [name for name, old in before.items() if np.array_equal(old, model.get_layer(name).get_weights())]
    # What has no range of its own, or is a constant part of the network.
    assert set(kept) <= {"pixels_steps", "normalise_steps", "predictions_activation_steps"}
    # Outputs in steps of 1/256.
    outputs = 256 * model.predict(images, verbose=0)
    np.testing.assert_array_equal(outputs, outputs.round())


def test_ranges_of_a_concatenation_hold_all_of_it():
    model, images = aware(build(shrunk("densenetbc100_12"), classes=CLASSES))
    shared = [layer for layer in model.layers if isinstance(layer, FakeQuantise) and layer.parts > 1]
    assert [layer.parts for layer in shared] == [3, 3]
    for layer in shared:
        low, high = np.array([limits.numpy() for limits in layer.ranges]).T
        assert low.min() == layer.limits()[0] and high.max() == layer.limits()[1] and len(set(high)) == layer.parts
    joined = next(layer for layer in model.layers if isinstance(layer, keras.layers.Concatenate))
    values = np.unique(keras.Model(model.inputs[0], joined.output).predict(images, verbose=0))
    assert len(values) <= 256


def test_a_kernel_has_a_step_for_each_channel():
    for bits in (8, 4):
        model, _ = aware(weight_bits=bits)
        for layer in settled(model).layers:
            if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
                steps = 7 if bits == 4 and isinstance(layer, keras.layers.Conv2D) else 127
                kernel = layer.get_weights()[0].reshape(-1, layer.get_weights()[0].shape[-1])
                scaled = steps * kernel / np.abs(kernel).max(axis=0).clip(1e-9)
                np.testing.assert_allclose(scaled, scaled.round(), atol=1e-3)


@pytest.mark.sweep
def test_plain_keras_opens_it_and_its_bytes_are_exported_again(tmp_path):
    model, images = aware()
    model.class_names = tuple("abc")
    trained(model, images)
    export(model, tmp_path / "m.keras", "keras", images)
    assert b"keras_resdense" not in zipfile.ZipFile(tmp_path / "m.keras").read("config.json")
    opened = keras.saving.load_model(tmp_path / "m.keras")
    # Plain Keras adds floats: where their last digit decides, a value may be rounded to the next step.
    np.testing.assert_allclose(opened.predict(images, verbose=0), model.predict(images, verbose=0), atol=1.01 / 256)
    assert export(opened, tmp_path / "m.tflite", "tflite_int8", images).agreement >= 0.9


@pytest.mark.parametrize("name", sweep(REPRESENTATIVES, {"resnet20"}))
def test_4_bit_weights_are_stored_in_4_bits(name, tmp_path):
    model, images = aware(build(shrunk(name), classifier_activation="softmax", classes=CLASSES), weight_bits=4)
    trained(model, images)
    export(model, tmp_path / "m.keras", "keras", images)
    # Weights are recognised in a file that plain Keras wrote, too.
    opened = keras.saving.load_model(tmp_path / "m.keras")
    made = export(opened, tmp_path / "m.tflite", "tflite_int8", images)
    assert made.agreement >= 0.9 and made.noise < 0.03
    # LiteRT's kernels round twice, and so does the network.
    assert_equal(made.path, model, images)
    file = schema.ModelT.InitFromPackedBuf((tmp_path / "m.tflite").read_bytes(), 0)
    graph, kinds = file.subgraphs[0], [code.builtinCode for code in file.operatorCodes]
    kernels = {
        graph.tensors[operator.inputs[1]].type
        for operator in graph.operators
        if kinds[operator.opcodeIndex] == schema.BuiltinOperator.CONV_2D
    }
    assert kernels == {schema.TensorType.INT4}


@pytest.mark.parametrize("bits", sweep((8, 4), {4}))
@pytest.mark.parametrize("format", sweep(("onnx", "openvino", "saved_model", "saved_model_frozen"), {"onnx"}))
def test_other_formats_round_too(format, bits, tmp_path):
    model, images = aware(weight_bits=bits)
    trained(model, images)
    made = export(model, tmp_path / "made", format, images)
    assert made.agreement == 1 and made.noise < 0.03
    # Probabilities keep their steps, which only rounding makes.
    outputs = 256 * EXPORTERS[format].read(made.path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, outputs.round(), atol=1e-3)


@pytest.mark.sweep
def test_saved_while_it_trains_it_goes_on(tmp_path):
    model, images = aware()
    trained(model, images)
    model.save(tmp_path / "m.keras")
    opened = keras.saving.load_model(tmp_path / "m.keras")
    for one in (model, opened):
        one.fit(images, np.arange(len(images)) % CLASSES, batch_size=16, shuffle=False, verbose=0)
    for expected, found in zip(model.get_weights(), opened.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, found)


@pytest.mark.sweep
def test_in_mixed_precision_under_a_mirrored_strategy(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], tf.distribute.ReductionToOneDevice()).scope():
            model, images = aware(tiny())
            assert model.get_layer("stem_conv1").compute_dtype == "bfloat16"
            before = [weight.numpy() for weight in model.trainable_variables]
            trained(model, images)
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert not any(np.array_equal(*pair) for pair in zip(before, model.trainable_variables, strict=True))
    assert export(model, tmp_path / "m.tflite", "tflite_int8", images).agreement >= 0.9


def test_a_network_of_normalised_images_takes_pixels(tmp_path):
    images = keras.Input((32, 32, 3))
    body = build(shrunk("resnet18"), classifier_activation="softmax", classes=CLASSES)
    model = keras.Model(images, body(keras.layers.Rescaling(58.0, 120.0)(images[..., ::-1])))
    model.image_contract = ImageContract(size=(32, 32), order="bgr", mean=(120.0,), std=(58.0,))
    with pytest.raises(ValueError, match="a GetItem, after rewriting for phones; quantisation-aware training supports"):
        quantisation_aware(model, (some_images() - 120.0) / 58)
    model = keras.Model(images, body(keras.layers.Rescaling(58.0, 120.0)(images)))
    model.image_contract = ImageContract(size=(32, 32), order="bgr", mean=(120.0,), std=(58.0,))
    pixels = some_images().astype("float32")
    whole = quantisation_aware(model, (pixels[..., ::-1] - 120) / 58)
    assert whole.image_contract.takes_pixels and whole.image_contract.order == "rgb"
    expected = model.predict((pixels[..., ::-1] - 120) / 58, verbose=0)
    assert np.abs(whole.predict(pixels, verbose=0) - expected).max() < 0.1
    assert export(whole, tmp_path / "m.tflite", "tflite_int8", pixels).noise < 0.03


def test_bad_input(tmp_path):
    model, images = aware()
    with pytest.raises(ValueError, match="is quantisation-aware already: train it further, or export it"):
        quantisation_aware(model, images)
    for format, kind in (("tflite", "float32"), ("tflite_float16", "float16"), ("tflite_trainable", "float32")):
        with pytest.raises(ValueError, match=f"for 8-bit integers, which {kind} does not use"):
            export(model, tmp_path / "m.tflite", format, images)
    with pytest.raises(ValueError, match="needs calibration images, a few hundred of the training data"):
        export(tiny(), tmp_path / "m.tflite", "tflite_int8", images)
    with pytest.raises(ValueError, match="weight_bits is 3; it must be 4 or 8"):
        quantisation_aware(tiny(), images, weight_bits=3)
    with pytest.raises(ValueError, match="these images go from 0 to 1"):
        quantisation_aware(tiny(), images / images.max())
    with pytest.raises(ValueError, match=r"images has shape \(32, 32, 3\)"):
        quantisation_aware(tiny(), images[0])
    other = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.LayerNormalization(name="norm")])
    with pytest.raises(ValueError, match="has 'norm', a LayerNormalization, after rewriting"):
        quantisation_aware(other, images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantise, bits", [("int8", 8), pytest.param("int4", 4, marks=pytest.mark.sweep)])
def test_a_run_ends_in_whole_numbers(quantise, bits, tmp_path, monkeypatch):
    install(monkeypatch.setitem, monkeypatch.setattr)
    monkeypatch.setattr(train, "QUANTISED_FORMATS", ("keras", "tflite_int8"))
    recipe = dataclasses.replace(RECIPE, quantise=quantise, quantised_epochs=1, accumulation=2)
    run = train.train(recipe, folder=str(tmp_path))
    assert {made.format: made.agreement for made in run.exports} == {
        "keras": 1,
        "tflite_int8": pytest.approx(1, abs=0.01),
    }
    described = json.loads((run.folder / "model_int8.tflite.json").read_text())
    assert described["accuracy"] == pytest.approx(run.accuracy, abs=0.01)
    assert has_4_bit_kernels(keras.saving.load_model(run.folder / "model.keras")) == (bits == 4)
    assert f"--quantise {quantise}" in (run.folder / "README.md").read_text()
