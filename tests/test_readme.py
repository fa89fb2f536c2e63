"""README.md keeps its word: its code runs, its table is what the command writes."""

import re

import pytest

from keras_resdense import list_models
from tests.zoo_facts import ROOT, row, table

README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", CODE)
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_models").mkdir()
    exec(compile(code, "README.md", "exec"), {})


def test_first_block_goes_from_model_to_phone_in_twelve_lines():
    first = CODE[0]
    assert len(first.splitlines()) <= 12
    assert all(word in first for word in ("ResNet20(", ".fit(", "tflite"))


def test_table_has_a_row_for_every_variant():
    assert [name.lower() for name in re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)] == list_models()


@pytest.mark.parametrize("variant", ["resnet18", "densenet40_12", "resnet50v1"])
def test_rows_of_the_table_are_what_the_command_writes(variant):
    assert row(variant) in README


@pytest.mark.sweep
def test_table_is_what_the_command_writes():
    assert table() in README


def test_continuous_integration_runs_the_readmes_commands():
    commands = re.search(r"<!-- set-up -->\n```shell\n(.*?)```", README, flags=re.DOTALL)[1].splitlines()
    assert commands == ["pip install . && keras-resdense train", "pip install '.[test]' && pytest"]
    assert "<!-- set-up -->" in (ROOT / ".ci/run").read_text()
