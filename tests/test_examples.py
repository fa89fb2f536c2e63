"""The example scripts run and are short, and the DenseNet module computes the same as in PyTorch."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_resdense
from keras_resdense import runs
from keras_resdense.pretrained import weights
from keras_resdense.pretrained.catalogue import published_weights
from tests.golden import rule

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
#: Those that train, and the networks they compare.
TRAINING = {"degradation": 4, "gradients": 4, "activation_orders": 5, "shortcuts": 4, "densenet_sweeps": 9}
POST = json.loads((ROOT / "tests/golden/post_densenet.json").read_text())


@pytest.fixture
def example(monkeypatch):
    """Loads an example as `python examples/NAME.py OPTIONS` does; without calling its `main`."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize("name", ["degradation", *(pytest.param(n, marks=pytest.mark.sweep) for n in [*TRAINING][1:])])
def test_experiments_run_and_resume(name, example, tmp_path, capsys):
    script = example(name, "--quick", "--folder", tmp_path)
    script.main()
    assert "are wrong" in capsys.readouterr().out
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    networks = json.loads((tmp_path / f"{name}.json").read_text())["networks"]
    assert len(networks) == TRAINING[name]
    for network in networks.values():
        (trained,) = network["runs"]
        assert 0 <= trained["final_error"] <= 100 and len(trained["train_error"]) > 0
    script.main()
    assert "are wrong" not in capsys.readouterr().out


def test_results_of_other_settings_are_kept(example, tmp_path):
    kept = json.dumps({"settings": {"epochs": 99}, "networks": {}})
    (tmp_path / "degradation.json").write_text(kept)
    with pytest.raises(ValueError, match="was made with .*99.*--folder"):
        example("degradation", "--quick", "--folder", tmp_path).main()
    assert (tmp_path / "degradation.json").read_text() == kept


def test_family_map_is_drawn(example, tmp_path):
    example("family_map", "--quick", "--folder", tmp_path).main()
    parameters, macs = json.loads((tmp_path / "family_map.json").read_text())["resnet18 at 224"]
    assert parameters == pytest.approx(11.689512) and macs == pytest.approx(1.814, abs=1e-3)
    assert (tmp_path / "family_map.png").stat().st_size > 5000


def test_each_network_with_published_weights_is_of_one_family(example):
    patterns = example("family_map").PATTERNS.values()
    for variant in {found.variant for found in published_weights()}:
        assert sum(bool(re.fullmatch(pattern, variant)) for pattern in patterns) == 1, variant


def test_blocks_have_the_weights_that_arithmetic_says(example):
    counts = [convolutions for convolutions, _ in example("shortcuts").block_counts().values()]
    assert counts == [2 * 9 * 256 * 256, 256 * 64 + 9 * 64 * 64 + 64 * 256] == [1_179_648, 69_632]


def test_posts_module_computes_what_pytorch_computes(example, capsys):
    script = example("post_densenet")
    script.main()
    printed = capsys.readouterr().out
    assert all(f"layer {i}: {32 + 32 * i} channels" in printed for i in range(1, 7))
    assert "transition: 256 channels to 128" in printed and printed.endswith(": 0\n")
    model = script.build(16)
    assert keras_resdense.count_parameters(model) == POST["parameters"] == 377_856
    weights.assign(model, {name: rule.array(name, tuple(shape)) for name, shape in POST["tensors"]}, "torch")
    theirs = np.array(POST["output"])
    np.testing.assert_allclose(model.predict_on_batch(rule.image(16)), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_figures_are_small_and_shown():
    shown = (EXAMPLES / "README.md").read_text()
    for path in (EXAMPLES / "figures").glob("*.png"):
        assert path.stat().st_size < 80_000, path
        assert f"](figures/{path.name})" in shown


@pytest.mark.parametrize("name", [*TRAINING, "family_map", "post_densenet"])
def test_scripts_are_short_and_say_how_to_start_them(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 60
    assert f"\n    python examples/{name}.py" in text


@pytest.mark.sweep
def test_beam_answers_as_predict_does(example, tmp_path):
    pytest.importorskip("apache_beam")
    model = keras_resdense.ResNet20(input_shape=(32, 32, 3), classes=3)
    model.image_contract, model.class_names = keras_resdense.ImageContract(size=(32, 32)), ("cat", "dog", "狗")
    keras_resdense.export(model, tmp_path / "model", "saved_model")
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(40, 30), (32, 32), (90, 200)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), "uint8")
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    expected = dict(runs.predict(tmp_path / "model", [tmp_path / "photos"]))
    (tmp_path / "photos" / "bad.png").write_text("no image")
    example("beam_predict", tmp_path / "model", tmp_path / "photos/*", tmp_path / "answers").main()
    lines = [line for path in tmp_path.glob("answers*") for line in path.read_text().splitlines()]
    found = {Path(answer.pop("image")): answer for answer in map(json.loads, lines)}
    assert found.pop(tmp_path / "photos/bad.png") == {"fault": "no JPEG or PNG, or damaged"}
    assert found.keys() == expected.keys()
    for path, answer in found.items():
        assert list(answer["classes"]) == [name for name, _ in expected[path]]
        assert answer["classes"] == pytest.approx(dict(expected[path]), abs=1e-4)
