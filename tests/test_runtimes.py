"""One door to inference: every runtime computes what Keras does, of a model and of every file that it runs."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest

import keras_resdense
from keras_resdense.__main__ import main
from keras_resdense.exporting import runtimes
from keras_resdense.exporting.exporter import Extras
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.openvino import OpenVINO
from keras_resdense.exporting.runtimes import RUNTIMES
from tests.fuzz import RUN
from tests.zoo_facts import sweep

IMAGES = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 1)).astype("float32")
#: Which runtime runs which file, beside Keras models and runs' folders.
FILES = [
    ("openvino", "openvino_model"),
    pytest.param("openvino", "openvino_model/model.xml", marks=pytest.mark.sweep),
    ("openvino", "model.onnx"),
    pytest.param("openvino", "saved_model", marks=pytest.mark.sweep),
    ("onnxruntime", "model.onnx"),
    ("tensorflow", "saved_model"),
    ("tensorflow", "model.keras"),
    ("litert", "model.tflite"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run with a file of every format, and its model."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(RUN, folder)
    model = keras_resdense.load_model(folder)
    model.image_contract, model.class_names = keras_resdense.ImageContract(size=(8, 8), channels=1), tuple("abcdefghij")
    for format in ("keras", "saved_model", "tflite", "onnx", "openvino"):
        row, path = EXPORTERS[format], folder / EXPORTERS[format].file_name
        (folder / f"{row.file_name}.json").unlink(missing_ok=True)
        extras = Extras(images=IMAGES, contract=model.image_contract, class_names=model.class_names)
        row.write(row.prepare(model), path, extras)
    return folder, model


def assert_same(opened, model, images=IMAGES):
    np.testing.assert_allclose(opened(images), model.predict(images, verbose=0), atol=1e-4)
    assert (opened.input_shape, opened.output_shape) == (model.input_shape, model.output_shape)
    assert (opened.image_contract, opened.class_names) == (model.image_contract, model.class_names)


@pytest.mark.parametrize(("runtime", "name"), FILES)
def test_a_runtime_runs_its_files(run, runtime, name):
    folder, model = run
    opened = keras_resdense.load_model(folder / name, runtime=runtime)
    assert opened.runtime == runtime
    assert_same(opened, model)


@pytest.mark.parametrize("runtime", sweep(RUNTIMES, {"openvino", "tensorflow"}))
def test_a_runtime_runs_a_keras_model(run, runtime):
    folder, model = run
    opened = keras_resdense.load_model(model, runtime=runtime)
    assert_same(opened, model)
    np.testing.assert_allclose(opened.predict(IMAGES, batch_size=2), opened(IMAGES), atol=1e-6)
    # Any numbers that fit, and any number of images.
    np.testing.assert_allclose(opened(IMAGES[:1].astype("float64").tolist()), opened(IMAGES)[:1], atol=1e-6)
    assert opened(IMAGES[:0]).shape == (0, 10) and opened(IMAGES).dtype == np.float32
    assert keras_resdense.transform(opened).contract == model.image_contract
    with pytest.raises(ValueError, match=r"images has shape \(8, 8, 1\); .* needs a batch axis: image\[None\]"):
        opened(IMAGES[0])
    with pytest.raises(ValueError, match="batch_size is 0"):
        opened.predict(IMAGES, batch_size=0)


@pytest.mark.sweep
@pytest.mark.parametrize("runtime", sweep(("openvino", "onnxruntime", "tensorflow"), {"onnxruntime"}))
def test_a_quantisation_aware_model_runs(run, runtime):
    _, model = run
    aware = keras_resdense.quantisation_aware(model, IMAGES)
    opened = keras_resdense.load_model(aware, runtime=runtime)
    # Where sums differ in the last digit, a value may be rounded to the next step.
    np.testing.assert_allclose(opened(IMAGES), aware.predict(IMAGES, verbose=0), atol=2.01 / 256)


def test_a_model_of_any_size_runs_in_openvino():
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], depths=(1, 1, 1))
    model = keras_resdense.create_model(row, input_shape=(None, None, 3), classes=4)
    assert_same(keras_resdense.load_model(model, runtime="openvino"), model, np.repeat(IMAGES, 3, -1))


@pytest.mark.parametrize(
    ("name", "fastest"),
    [("", "openvino"), ("model.onnx", "openvino"), ("model.tflite", "litert")],
)
def test_auto_takes_the_fastest_and_says_so(run, capsys, name, fastest):
    folder, model = run
    opened = keras_resdense.load_model(folder / name, runtime="auto")
    assert opened.runtime == fastest
    assert f"runs in {RUNTIMES[fastest].title}, the fastest installed runtime for it" in capsys.readouterr().err
    assert_same(opened, model)


def test_auto_takes_what_is_installed(monkeypatch):
    find = importlib.util.find_spec

    def without(*missing):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
        return [runtimes.candidates(format, "float32") for format in ("keras", "onnx", "tflite")]

    assert without() == [["openvino", "onnxruntime", "tensorflow", "litert"], ["openvino", "onnxruntime"], ["litert"]]
    # Without its converter, ONNX Runtime still runs files.
    assert without("openvino", "tf2onnx") == [["tensorflow", "litert"], ["onnxruntime"], ["litert"]]
    assert without("openvino", "onnxruntime")[1] == []
    monkeypatch.setattr(runtimes, "_has_gpu", lambda: True)
    assert without()[0][0] == "tensorflow" and without()[1] == ["openvino", "onnxruntime"]


def test_missing_packages_are_named(run, monkeypatch):
    folder, _ = run
    find = importlib.util.find_spec
    gone = ("openvino", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    with pytest.raises(ValueError, match="OpenVINO needs openvino: pip install openvino"):
        keras_resdense.load_model(folder, runtime="openvino")
    with pytest.raises(ValueError, match="in float32: pip install openvino or pip install onnxruntime"):
        keras_resdense.load_model(folder / "model.onnx", runtime="auto")


def test_auto_goes_on_if_a_model_cannot_be_converted(run, monkeypatch, capsys):
    _, model = run

    def write(*_):
        raise NotImplementedError("an odd layer")

    monkeypatch.setattr(OpenVINO, "write", write)
    with pytest.raises(ValueError, match="cannot be converted for OpenVINO: an odd layer"):
        keras_resdense.load_model(model, runtime="openvino")
    assert keras_resdense.load_model(model, runtime="auto").runtime == "onnxruntime"
    assert "does not run in OpenVINO" in capsys.readouterr().err


def test_a_wrong_conversion_is_refused(run, monkeypatch):
    _, model = run
    other = keras_resdense.fold_batch_norm(model)
    other.set_weights([weight * 1.5 for weight in other.get_weights()])
    monkeypatch.setitem(RUNTIMES, "openvino", dataclasses.replace(RUNTIMES["openvino"], rewrite=lambda _: other))
    with pytest.raises(RuntimeError, match="in OpenVINO differs from the model.*Use another runtime"):
        keras_resdense.load_model(model, runtime="openvino")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("", {"runtime": "openvno"}, "no runtime 'openvno'. Closest: openvino"),
        ("", {"runtime": "auto", "precision": "int8"}, "no precision of a runtime 'int8'.*float32, bfloat16"),
        ("", {"runtime": "litert", "precision": "bfloat16"}, "use the runtime 'openvino'"),
        ("", {"precision": "bfloat16"}, "add runtime='auto'"),
        ("model.tflite", {}, "no Keras model, but can be run: add runtime='auto'"),
        ("model.tflite", {"runtime": "tensorflow"}, "TensorFlow does not run .*model.tflite: use the runtime 'litert'"),
        ("saved_model", {"runtime": "onnxruntime"}, "use the runtime 'openvino', 'tensorflow' or 'auto'"),
        ("history.csv", {"runtime": "auto"}, "is not a model: it must be a run's folder"),
        ("none.keras", {"runtime": "auto"}, "does not exist"),
        ("none.keras", {}, "There is no"),
    ],
)
def test_what_cannot_be_run_is_refused_with_advice(run, name, options, said):
    folder, _ = run
    with pytest.raises(ValueError, match=said):
        keras_resdense.load_model(folder / name, **options)


def test_a_keras_model_needs_a_runtime(run):
    with pytest.raises(ValueError, match="is a Keras model already"):
        keras_resdense.load_model(run[1])


def test_bfloat16_only_by_request(run):
    import openvino

    folder, model = run
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ValueError, match="no instructions for bfloat16"):
            keras_resdense.load_model(folder, runtime="openvino", precision="bfloat16")
        return
    half = keras_resdense.load_model(folder, runtime="auto", precision="bfloat16")
    expected = model.predict(IMAGES, verbose=0)
    assert (half.runtime, half.precision) == ("openvino", "bfloat16")
    np.testing.assert_allclose(half(IMAGES), expected, atol=0.1)
    assert abs(half(IMAGES) - expected).max() > 1e-5


def test_the_command_line_uses_the_door(run, tmp_path, capsys):
    from PIL import Image

    folder, _ = run
    Image.fromarray(IMAGES[0, ..., 0].astype("uint8")).save(tmp_path / "image.png")
    assert main(["predict", str(folder / "model.onnx"), str(tmp_path / "image.png"), "--format", "jsonl"]) == 0
    expected = capsys.readouterr()
    command = ["predict", str(folder), str(tmp_path / "image.png"), "--format", "jsonl", "--runtime", "auto"]
    assert main(command) == 0
    found = capsys.readouterr()
    assert "runs in OpenVINO" in found.err and "runs in" not in expected.err
    classes, others = (json.loads(said.out)["classes"] for said in (found, expected))
    assert classes == pytest.approx(others, abs=1e-4) and len(classes) == 5
