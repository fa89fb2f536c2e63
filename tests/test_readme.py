"""The code of README.md runs, and the table of variants is up to date."""

import re
import shutil
from pathlib import Path

import pytest
import sklearn

import keras_resdense
from keras_resdense import list_models
from tests.zoo_facts import ROOT, row, table

README, VARIANTS_PAGE = ((ROOT / name).read_text() for name in ("README.md", "docs/variants.md"))
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Replaces the hub: published weights are random ones."""

    def download(found, include_top=True):
        path = tmp_path / "random.weights.h5"
        keras_resdense.create_model(found.variant).save_weights(path)
        return path

    monkeypatch.setattr("keras_resdense.networks.zoo.download", download)


@pytest.mark.parametrize("code", CODE)
def test_code_runs(code, tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_models").mkdir()
    shutil.copy(Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg", "cat.jpg")
    exec(compile(code, "README.md", "exec"), {})


def test_a_model_gets_to_a_phone_in_twelve_lines():
    (phone,) = (code for code in CODE if "tflite" in code)
    assert len(phone.splitlines()) <= 12
    assert all(word in phone for word in ("ResNet20(", ".fit(", "export("))


def test_table_has_a_row_for_every_variant():
    assert [name.lower() for name in re.findall(r"^\| `(\w+)` \|", VARIANTS_PAGE, flags=re.MULTILINE)] == list_models()


@pytest.mark.parametrize("variant", ["resnet18", "densenet40_12", "resnet50v1"])
def test_rows_of_the_table_are_what_the_command_writes(variant):
    assert row(variant) in VARIANTS_PAGE


@pytest.mark.sweep
def test_table_is_what_the_command_writes():
    assert table() in VARIANTS_PAGE


def test_continuous_integration_runs_the_readmes_commands():
    commands = re.search(r"<!-- set-up -->\n```shell\n(.*?)```", README, flags=re.DOTALL)[1].splitlines()
    assert commands == ["pip install . && keras-resdense train", "pip install '.[test]' && pytest"]
    assert "<!-- set-up -->" in (ROOT / ".ci/run").read_text()
