"""Distributions for an index: a complete source distribution, and a wheel built from it."""

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

import keras_resdense
from tests.zoo_facts import ROOT

BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"


def build(kind, source, target):
    subprocess.run([sys.executable, "-c", BUILD, kind, str(target)], cwd=source, check=True, capture_output=True)
    return next(target.glob("*.tar.gz" if kind == "build_sdist" else "*.whl"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Returns the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("build_sdist", ROOT, folder)) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    with zipfile.ZipFile(build("build_wheel", sdist, tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


def test_the_source_has_documentation_changelog_and_tests(sdist):
    for name in ("CHANGELOG.md", "mkdocs.yml", "docs/train.md", "docs/figures/logo.svg", "tests/tiny.py"):
        assert (sdist / name).is_file(), name
    tracked = subprocess.run(["git", "ls-files", "tests", "docs"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        assert (sdist / name).is_file(), name


def test_the_wheel_has_all_that_is_read_at_run_time(wheel):
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "keras_resdense").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in wheel.namelist() if name.startswith("keras_resdense/")} == data


def test_an_index_can_show_the_metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Version"] == keras_resdense.__version__ and metadata["Keywords"]
    versions = {text.rpartition(" ")[2] for text in metadata.get_all("Classifier") if re.search(r":: 3\.\d+$", text)}
    assert versions == {"3.10", "3.11", "3.12", "3.13"}
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    links += [url.split(", ")[1] for url in metadata.get_all("Project-URL")]
    assert all(link.startswith("https://") for link in links)


#: What the README does with a row, and a mistake at the end.
PROGRAM = """
import dataclasses
import keras_resdense

row = dataclasses.replace(keras_resdense.VARIANTS["densenet121"], compression=0.7)
model = keras_resdense.create_model(row, input_shape=(64, 64, 4), classes=5)
keras_resdense.ResNet50(input_shape="large")
"""


def test_type_checkers_know_what_is_public(wheel, tmp_path):
    """Only base classes from Keras, which has no types, remain unknown."""
    wheel.extractall(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    checker = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    known = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True}
    public = subprocess.run([*checker, "--ignoreexternal", "--verifytypes", "keras_resdense"], **known)
    assert json.loads(public.stdout)["typeCompleteness"]["completenessScore"] >= 0.99
    used = json.loads(subprocess.run([*checker, "--level", "error", "program.py"], **known).stdout)
    wrong = [found["range"]["start"]["line"] for found in used["generalDiagnostics"]]
    assert [PROGRAM.splitlines()[line] for line in wrong] == ['keras_resdense.ResNet50(input_shape="large")']
