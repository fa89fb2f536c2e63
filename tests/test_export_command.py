"""`keras-resdense export`: a run's model in more formats, with the run's own images."""

import dataclasses
import sys
import warnings

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter

import keras_resdense
from keras_resdense.__main__ import main
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.training import recipes
from keras_resdense.training.recipes import RECIPE_FILE, Recipe, Settings

ROW = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], depths=(1, 1), filters=(8, 16))


@pytest.fixture
def run(tmp_path):
    """Returns the folder of a run on the digits, with what `export` reads of it."""
    folder = tmp_path / "run"
    folder.mkdir()
    keras_resdense.create_model(ROW, input_shape=(8, 8, 1), classes=10).save(folder / "model.keras")
    (folder / RECIPE_FILE).write_text(recipes.describe(Recipe(data="digits"), Settings()))
    return folder


def export(run, *options):
    return main(["export", str(run), "--compared-images", "40", "--calibration-images", "200", *map(str, options)])


@pytest.mark.filterwarnings("ignore:The model predicts")
def test_formats_in_one_table(run, capsys):
    formats = ["tflite", "tflite_int8"]
    assert export(run, "--uint8-pixels", "--any-batch", "--format", *formats) == 0
    header, *lines = capsys.readouterr().out.strip().splitlines()[-3:]
    assert [line.split()[0] for line in [header, *lines]] == ["format", *formats]
    for name in formats:
        read = EXPORTERS[name].read(run / EXPORTERS[name].file_name)
        assert read(np.zeros((3, 8, 8, 1), "uint8")).shape == (3, 10)
    assert (run / "labels.txt").read_text().split() == [str(digit) for digit in range(10)]
    assert export(run, "--format", "tflite") == 1
    assert "exists: choose another path, or overwrite it" in capsys.readouterr().err


def test_reports_what_a_phone_makes_of_the_files(run, capsys):
    assert export(run, "--report", "--format", "tflite", "keras", "--folder", run / "made") == 0
    shown = capsys.readouterr().out
    assert shown.endswith(f"\n\n{keras_resdense.device_report(run / 'made/model.tflite')}\n")
    assert "1 partition, all operators inside" in shown
    assert export(run, "--report", "--format", "onnx") == 1
    assert "--report describes .tflite files, and onnx writes none" in capsys.readouterr().err
    assert not (run / "model.onnx").exists()


def test_into_another_folder_with_the_card(run, tmp_path):
    (run / "README.md").write_text("# digits")
    folder = tmp_path / "phone"
    folder.mkdir()
    (folder / "README.md").write_text("of somebody else")
    assert export(run, "--format", "tflite", "--folder", folder) == 0
    made = {"model.tflite", "model.tflite.json", "labels.txt", "card.md"}
    assert {file.name for file in folder.iterdir()} == made | {"README.md"}
    assert (folder / "card.md").read_text() == "# digits"
    assert (folder / "README.md").read_text() == "of somebody else"


@pytest.mark.sweep
def test_the_last_stage_learns_if_asked(run):
    sizes = {}
    for options in ((), ("--learn-last-stage",)):
        assert export(run, "--overwrite", *options, "--format", "tflite_trainable") == 0
        interpreter = Interpreter(str(run / "model_trainable.tflite"))
        sizes[options] = interpreter.get_signature_runner("save")()["weights"].size
    assert sizes["--learn-last-stage",] > 2 * sizes[()]


def test_options_of_formats(run, tmp_path, capsys):
    options = ["--opset", "17", "--serving-version", "3", "--license", "MIT", "--int8-pixels"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model predicts")
        assert export(run, *options, "--format", "onnx", "saved_model", "tflite_int8") == 0
    assert onnx.load(run / "model.onnx").opset_import[0].version == 17
    assert (run / "saved_model/3/saved_model.pb").is_file()
    source = Interpreter(model_path=str(run / "model_int8.tflite")).get_input_details()[0]
    assert source["dtype"] is np.int8
    assert b"MIT" in (run / "model_int8.tflite").read_bytes()
    assert export(run, "--opset", "17", "--format", "tflite") == 1
    assert "opset can be chosen for other formats, not for tflite" in capsys.readouterr().err


def test_what_was_written_is_shown_although_a_later_format_fails(run, capsys, monkeypatch):
    monkeypatch.setitem(EXPORTERS, "tflite", dataclasses.replace(EXPORTERS["tflite"], tolerance=-1.0))
    assert export(run, "--format", "keras", "onnx", "tflite", "--folder", run / "made") == 1
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()[-3:]] == ["format", "keras", "onnx"]
    assert "tflite differs from the model" in shown.err
    assert (run / "made/model.onnx").is_file() and not (run / "made/model.tflite").exists()


def test_missing_packages_are_named_before_any_work(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    assert export(run, "--format", "tflite", "onnx") == 1
    assert "ONNX needs tf2onnx: pip install onnx onnxruntime tf2onnx" in capsys.readouterr().err
    assert not (run / "model.tflite").exists()


def test_bad_input(run, tmp_path, capsys):
    assert export(tmp_path / "none", "--format", "tflite") == 1
    assert "is not the folder of a run" in capsys.readouterr().err
    assert export(run, "--format", "tflite", "--compared-images", "0") == 1
    assert "compared_images is 0; it must be a whole number of at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export(run, "--format", "tflight")
    assert "invalid choice: 'tflight'" in capsys.readouterr().err
