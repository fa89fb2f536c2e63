"""The command line: output, exit codes, help and errors of each command."""

import csv
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

import keras_resdense
from keras_resdense.__main__ import COMMANDS, main
from keras_resdense.data.plan import ExportImages, ImageRecipe
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.networks import zoo
from keras_resdense.options import field_texts, make_parser, overridden
from keras_resdense.pretrained.catalogue import FREE_LICENCES
from keras_resdense.training import card, recipes
from keras_resdense.training.recipes import RECIPES, OptimisationRecipe, Recipe, Settings
from keras_resdense.training.run_checkpoint import Interrupted
from keras_resdense.training.train import Run

MODELS = (".", "model.keras", "saved_model", "model.tflite", "model.onnx")
PIXELS = np.round(load_digits().images[:3] * (255 / 16)).astype("uint8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a run of a small network on the digits, made by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        row = dataclasses.replace(zoo.VARIANTS["resnet20"], depths=(1, 1), filters=(8, 16))
        patch.setitem(zoo.VARIANTS, "tiny", row)
        assert main(["train", "--model", "tiny", "--epochs", "1", "--folder", str(folder), "--name", "run"]) == 0
        assert main(["export", str(folder / "run"), "--format", "onnx", "--compared-images", "20"]) == 0
        yield folder / "run"


@pytest.fixture
def photos(tmp_path):
    """Returns a folder of three digits and a file that is no image."""
    (tmp_path / "deeper").mkdir()
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "deeper" / "c.png"]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    (tmp_path / "notes.txt").write_text("left alone")
    return tmp_path


@pytest.fixture
def failing(capsys):
    """Returns a function that runs a command which must fail, and returns its one message."""

    def fail(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1
        message = capsys.readouterr().err.strip()
        assert "keras-resdense: " in message and "Traceback" not in message
        return message

    return fail


def test_a_run_s_card_says_how_to_use_and_to_make_it(run, monkeypatch):
    text = (run / "README.md").read_text()
    usage = text.split("```python\n")[1].split("```")[0]
    names = {"images": PIXELS[..., None].astype("float32")}
    monkeypatch.chdir(run.parent)
    exec(usage, names)
    assert names["probabilities"].shape == (3, 10)
    predicting, making, repeating = (line for line in text.splitlines() if line.startswith("keras-resdense "))
    Image.fromarray(PIXELS[0]).save("photo.png")
    assert main(shlex.split(predicting)[1:]) == 0
    assert making == "keras-resdense train --epochs 1 --model tiny --folder . --name run"
    assert make_parser(COMMANDS).parse_args(shlex.split(repeating)[1:]).recipe == "run/recipe.json"
    assert "8 × 8 pixels with 1 channel, values" in text and "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 (" in text


def test_later_exports_enter_the_card(run):
    """The fixture has exported ONNX after the training."""
    text = (run / "README.md").read_text()
    for format in ("keras", "onnx", "saved_model", "tflite"):
        measured = json.loads((run / f"{EXPORTERS[format].file_name}.json").read_text())
        assert f"| {format} | `{measured['path']}` | {measured['size'] / 1e6:.2f} MB |" in text


@pytest.mark.parametrize("model", MODELS)
def test_every_format_predicts_alike(run, photos, model, capsys):
    assert main(["predict", str(run / model), str(photos), "--top", "10", "--format", "json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    expected = keras.saving.load_model(run / "model.keras").predict(PIXELS[..., None].astype("float32"), verbose=0)
    assert [Path(answer["image"]).name for answer in answers] == ["a.png", "b.png", "c.png"]
    for answer, probabilities in zip(answers, expected, strict=True):
        assert list(answer["classes"].values()) == sorted(answer["classes"].values(), reverse=True)
        found = [answer["classes"][str(digit)] for digit in range(10)]
        np.testing.assert_allclose(found, probabilities, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_every_format_is_evaluated_alike(run, model, capsys):
    assert main(["evaluate", str(run / model)]) == 0
    results = json.loads((run / "run.json").read_text())
    right, loss = capsys.readouterr().out.strip().split("; loss ")
    assert right == f"{results['accuracy']:.2%} of 360 held-out images right"
    assert float(loss) == pytest.approx(results["loss"], abs=2e-4)


def test_predictions_as_text_and_csv(run, photos, capsys):
    labels = photos / "labels.txt"
    labels.write_text("\n".join(f"chiffre {digit}, «{digit}»" for digit in range(10)), encoding="utf-8")
    command = ["predict", str(run), str(photos / "a.png"), "--labels", str(labels), "--top", "2"]
    assert main(command) == 0
    path, first, second = capsys.readouterr().out.splitlines()
    assert path == str(photos / "a.png") and "%  chiffre " in first and "%  chiffre " in second
    assert main([*command, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2"] and rows[0]["class"] in first
    assert float(rows[0]["probability"]) >= float(rows[1]["probability"])


def test_what_cannot_be_predicted_is_named(run, photos, tmp_path, failing):
    (photos / "letter.jpg").write_text("no image")
    (photos / "empty").mkdir()
    (photos / "short.txt").write_text("one\ntwo\n")
    assert "letter.jpg: not an image" in failing("predict", run, photos / "letter.jpg")
    assert "There is no " in failing("predict", run, photos / "missing.png")
    assert "There are no images in " in failing("predict", run, photos / "empty")
    assert "2 names for 10 classes" in failing("predict", run, photos / "a.png", "--labels", photos / "short.txt")
    assert "No such file" in failing("predict", run, photos / "a.png", "--labels", photos / "none.txt")
    assert "top is 0; it must be at least 1" in failing("predict", run, photos / "a.png", "--top", "0")


def test_what_is_no_model_is_refused(run, photos, failing):
    model = photos / "model.tflite"
    content = (run / "model.tflite").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no model at all"):
        model.write_bytes(damaged)
        assert "is not a TFLite model" in failing("predict", model, photos)
    double = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec((1, 7), name="x")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([double.get_concrete_function()], double)
    model.write_bytes(converter.convert())
    assert "takes inputs of shape (7,), not images" in failing("predict", model, photos)
    for suffix, kind in ((".keras", "a Keras model"), (".onnx", "an ONNX model")):
        (photos / f"model{suffix}").write_bytes(b"no model at all")
        assert f"is not {kind}" in failing("predict", photos / f"model{suffix}", photos)
    assert "is not a SavedModel" in failing("predict", photos / "deeper", photos / "a.png")
    assert "is not a model: it must be a run's folder" in failing("evaluate", photos / "notes.txt")
    assert "add --data" in failing("evaluate", shutil.copy(run / "model.tflite", photos / "alone.tflite"))


def test_onnx_without_its_runtime_says_what_to_install(run, photos, failing, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "needs onnxruntime: pip install onnxruntime" in failing("predict", run / "model.onnx", photos)


def test_data_that_do_not_fit_the_model_are_refused(run, tmp_path, failing, capsys):
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(np.full((8, 8, 3), 50 * number, "uint8")).save(tmp_path / name / f"{number}.png")
    assert "knows 10 classes" in failing("evaluate", run, "--data", tmp_path)
    row = dataclasses.replace(zoo.VARIANTS["resnet20"], depths=(1,), filters=(4,))
    keras_resdense.create_model(row, input_shape=(8, 8, 3), classes=3).save(tmp_path / "three.keras")
    assert "knows 3 classes" in failing("evaluate", tmp_path / "three.keras", "--data", tmp_path)
    (tmp_path / "left" / "bad.png").write_bytes(b"")
    assert "bad.png" in failing("evaluate", tmp_path / "three.keras", "--data", tmp_path)
    keras_resdense.create_model(row, input_shape=(8, 8, 3), classes=2).save(tmp_path / "two.keras")
    skipping = ["evaluate", str(tmp_path / "two.keras"), "--data", str(tmp_path), "--on-bad-image", "skip"]
    assert main(skipping) == 0
    assert "of 2 held-out images right" in capsys.readouterr().out


def test_variants_and_recipes_are_listed(capsys, failing):
    assert main(["list"]) == 0
    # A fixture may have added one.
    assert set(capsys.readouterr().out.split()) == set(keras_resdense.list_models()) - {"tiny"}
    assert main(["list", "densenet12*"]) == 0
    assert capsys.readouterr().out.split() == ["densenet121"]
    assert main(["list", "--recipes"]) == 0
    listed = capsys.readouterr().out
    for name, row in RECIPES.items():
        assert f"\n{name}\n" in f"\n{listed}" and row.source in listed and row.measured in listed
    assert "No variant matches 'alexnet'" in failing("list", "alexnet")


def test_summary_of_a_variant_and_of_a_run(run, capsys, failing):
    for model in ("resnet20", run, run / "model.keras"):
        assert main(["summary", str(model)]) == 0
        assert "\nstage2 " in capsys.readouterr().out
    assert "resnet50" in failing("summary", "resnet5")


def as_a_shell_reads(command):
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_a_run_s_file_and_the_card_s_command_make_it_again(run, monkeypatch, capsys):
    asked = []

    def train(recipe, settings, **options):
        asked.append((recipe, settings))
        return Run(folder=run, model=None, accuracy=0.5, exports=[])

    monkeypatch.setattr("keras_resdense.training.train.train", train)
    assert main(["train", "--recipe", str(run / "recipe.json")]) == 0
    assert asked.pop() == recipes.read(run / "recipe.json")
    for row in RECIPES.values():
        settings = Settings(seed=3, deterministic=True, data_dir="my data")
        written = card.in_lines(card.command(row.recipe, settings))
        assert max(map(len, written.splitlines())) <= 80
        program, *words = as_a_shell_reads(written)
        assert program == "keras-resdense" and main(words) == 0
        assert asked.pop() == (row.recipe, settings)
    photos = dataclasses.replace(RECIPES["fast"].recipe, data=str(run))
    program, *words = card.command(photos, Settings())
    assert main(words) == 0 and asked.pop() == (photos, Settings())


def test_training_starts_from_published_weights(tmp_path, monkeypatch):
    """A local file replaces the download, which has its own tests."""
    row = zoo.VARIANTS["resnet18"]
    file, asked = tmp_path / "published.keras", []
    published = keras_resdense.create_model(row, input_shape=(32, 32, 3), classes=10)
    published.save(file)

    def download(found, include_top):
        asked.append(found.name)
        return file

    class Stop(Exception):
        pass

    def fit(model, *_, **__):
        kernel = next(layer for layer in model.layers if layer.name == "stage3_block1_conv1").kernel
        np.testing.assert_array_equal(kernel, published.get_layer("stage3_block1_conv1").kernel)
        raise Stop

    monkeypatch.setattr(zoo, "download", download)
    monkeypatch.setattr("keras_resdense.training.train._fit", fit)
    best = next(found.name for found in keras_resdense.list_weights("resnet18") if found.licence in FREE_LICENCES)
    for weights, name in (("imagenet", best), ("a1_in1k", "a1_in1k")):
        words = ["train", "--model", "resnet18", "--image-size", "32", "--weights", weights, "--debug"]
        with pytest.raises(Stop):
            main([*words, "--folder", str(tmp_path), "--name", weights])
        assert asked.pop() == name


def test_training_is_refused_before_it_begins(run, failing, tmp_path):
    train = ["train", "--folder", tmp_path]
    assert "no recipe 'slow'. There are digits, fast" in failing(*train, "--recipe", "slow")
    assert "resnet20" in failing(*train, "--model", "resnet21")
    assert "epochs is 0; it must be a whole number of at least 1" in failing(*train, "--epochs", "0")
    assert "no folder or data set 'nonsense'" in failing(*train, "--data", "nonsense")
    assert "choose another name" in failing("train", "--folder", run.parent, "--name", run.name)


@pytest.mark.parametrize(
    ("stop", "code", "message"),
    [(Interrupted("saved at step 7"), 143, "saved at step 7"), (KeyboardInterrupt(), 130, "keyboard")],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_exit_codes_of_what_was_stopped(stop, code, message, monkeypatch, capsys):
    def train(*_, **__):
        raise stop

    monkeypatch.setattr("keras_resdense.training.train.train", train)
    assert main(["train"]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", "trane", "predict", "list --all", "predict a b --format x"])
def test_what_cannot_be_parsed_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2 and "usage: keras-resdense" in capsys.readouterr().err


def test_debug_shows_where_an_error_comes_from():
    with pytest.raises(ValueError, match="No variant matches"):
        main(["list", "alexnet", "--debug"])


def helped(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_can_be_parsed(command, capsys):
    _, examples = helped(command, capsys).split("examples:\n")
    joined = re.sub(r" *\\\n +", " ", examples)
    lines = [line.split(">")[0] for line in joined.splitlines() if line.startswith("  keras-resdense")]
    assert lines
    for line in lines:
        _, *words = shlex.split(line)
        assert words[0] == command
        options = make_parser(COMMANDS).parse_args(words)
        if command == "train" and not (options.recipe or "").endswith(".json"):
            overridden(recipes.get_recipe(options.recipe or "digits"), options)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_narrow_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, helped(command, capsys).splitlines())) <= 60


def inherited(kind):
    return {field.name for base in kind.__bases__ if base is not object for field in dataclasses.fields(base)}


def test_help_says_what_each_field_means(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    said = helped("train", capsys) + helped("export", capsys)
    kinds = (Recipe, ImageRecipe, OptimisationRecipe, Settings, ExportImages)
    for kind in kinds:
        texts = field_texts(kind)
        assert set(texts) == {field.name for field in dataclasses.fields(kind)} - inherited(kind)
        for name, text in texts.items():
            option = rf"^  --{name.replace('_', '-')}[ ,].*?(?=\n  -|\n\n)"
            shown = re.findall(option, said, flags=re.DOTALL | re.MULTILINE)
            assert any(text.split("`")[0] in help for help in shown)


LIGHT = """
import sys
sys.modules |= dict.fromkeys(("keras", "tensorflow"))
from keras_resdense.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", ["--version", "train --help", "list", "list --recipes", "weights resnet18"])
def test_what_needs_no_network_loads_neither_keras_nor_tensorflow(words):
    done = subprocess.run([sys.executable, "-c", LIGHT, *words.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if words == "--version":
        assert done.stdout == f"keras-resdense {keras_resdense.__version__}\n"


def test_published_weights_are_listed(capsys, failing):
    assert main(["weights", "resnet50*"]) == 0
    head, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert head.split() == ["variant", "name", "top-1", "at", "licence", "download", "preprocessing"]
    first = keras_resdense.list_weights("resnet50")[0]
    told = f"{first.name} {first.top1:.1f} % {first.input_size} px {first.licence} 102 MB {first.preprocessing}"
    assert rows[0].split() == ["resnet50", *told.split()]
    assert {row.split()[0] for row in rows} >= {"resnet50", "resnet50d", "resnet50v2"}
    assert "no published weights of plainnet18" in failing("weights", "plainnet18")
    assert "No variant matches 'alexnet'" in failing("weights", "alexnet")


@pytest.mark.sweep
def test_the_installed_program_fails_with_nothing_but_its_message():
    """It runs as in a shell, or by `python -m` if the package is not installed."""
    script = shutil.which("keras-resdense", path=Path(sys.executable).parent)
    program = [script] if script else [sys.executable, "-m", "keras_resdense"]
    done = subprocess.run([*program, "summary", "resnet51"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"\nkeras-resdense: .*resnet50.*\n", done.stderr)


WARNED = """
import sys, warnings
from keras_resdense import __main__
__main__.COMMANDS["list"] = lambda options: warnings.warn("too few images")
sys.argv = ["keras-resdense", "list"]
sys.exit(__main__.main())
"""


def test_a_warning_is_one_plain_line():
    done = subprocess.run([sys.executable, "-c", WARNED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "keras-resdense: warning: too few images\n")


HELD_BACK = """
import logging, os, sys
from keras_resdense import terminal
with terminal.native_log_held_back():
    os.write(2, b"I0000 00:00:1795520473.899620   32054 port.cc:153] routine\\n")
    os.write(2, b"2026-01-01 00:00:00.000000: I tensorflow/core/platform.cc:1] routine\\n")
    os.write(2, b"E0000 00:00:1795520473.899620   32054 gpu.cc:1] out of memory\\nsaid by C\\n")
    print("said by Python", file=sys.stderr)
    logging.getLogger("tensorflow").warning("5 of 9 calls triggered tf.function retracing")
    logging.getLogger("tensorflow").warning("warned by Python")
    if sys.argv[1] == "crash":
        os.abort()
    if sys.argv[1] == "fail":
        raise ValueError("an error")
os.write(2, b"I0000 afterwards\\n")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is held back without os.fork")
@pytest.mark.parametrize("end", ["well", "fail", "crash"])
def test_routine_messages_are_held_back_until_something_crashes(end):
    done = subprocess.run([sys.executable, "-c", HELD_BACK, end], capture_output=True, text=True)
    assert ("routine" in done.stderr) == (end == "crash")
    assert all(
        text in done.stderr for text in ("out of memory\n", "said by C\n", "said by Python\n", "warned by Python\n")
    )
    assert "retracing" not in done.stderr
    assert ("ValueError: an error" in done.stderr) == (end == "fail")
    assert ("I0000 afterwards\n" in done.stderr) == (end == "well")
