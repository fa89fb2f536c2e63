"""The errors of the first hour: what each advises, followed to the letter, works."""

import dataclasses
import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import keras_resdense
from keras_resdense.__main__ import main
from keras_resdense.networks import zoo
from keras_resdense.pretrained import downloads
from tests.golden import rule
from tests.zoo_facts import ROOT, TORCH

RUN = ROOT / "saved_models" / "resnet20_fashion_mnist"


class Begun(BaseException):
    """Training was about to begin."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with photos of cats and dogs, where training stops as it begins."""

    def begin(*_, **__):
        raise Begun

    monkeypatch.setattr("keras_resdense.training.train._fit", begin)
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], depths=(1,), filters=(4,))
    monkeypatch.setitem(zoo.VARIANTS, "tiny", row)
    monkeypatch.chdir(tmp_path)
    photograph("photos/cat", "photos/dog")
    return tmp_path


def photograph(*folders, shape=(16, 16, 3), count=6):
    """Writes photos into each folder."""
    for folder in map(Path, folders):
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full(shape, 40 * number, "uint8")).save(folder / f"{number}.png")


@pytest.fixture
def advice(capsys):
    """Returns a function that runs a command which must fail, and returns what it says."""

    def fail(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1
        return capsys.readouterr().err

    return fail


def train(*words):
    return "train", "--model", "tiny", *map(str, words)


def begins(*words):
    """Says whether a command begins to train."""
    with pytest.raises(Begun):
        main([str(word) for word in words])
    return True


def test_a_wrong_folder(advice):
    (closest,) = re.findall(r"Closest: ([^,]+?)[,.] ", advice(*train("--data", "fotos")))
    assert begins(*train("--data", closest))


def test_a_folder_named_as_the_embedded_data_set(capsys):
    photograph("digits/zero", "digits/one")
    assert begins(*train("--data", "digits", "--name", "embedded"))
    (folder,) = re.findall(r"For the folder of that name, give (\S+) instead", capsys.readouterr().out)
    assert begins(*train("--data", folder, "--name", "own"))
    assert "Found 9 images to train on" in capsys.readouterr().out


def test_the_folder_of_one_class_in_place_of_all(advice):
    (meant,) = re.findall(r"did you mean (.+)\?", advice(*train("--data", "photos/cat")))
    assert begins(*train("--data", meant))


def test_an_image_in_place_of_the_folder(advice):
    (folder,) = re.findall(r"that it is in: (\S+)", advice(*train("--data", "photos/cat/0.png")))
    (meant,) = re.findall(r"did you mean (.+)\?", advice(*train("--data", folder)))
    assert begins(*train("--data", meant))


def test_the_folder_without_its_option(capsys):
    with pytest.raises(SystemExit):
        main(list(train("photos")))
    (option,) = re.findall(r"write (.+)", capsys.readouterr().err)
    assert begins(*train(*option.split()))


def test_an_image_that_is_none(advice):
    Path("photos/cat/notes.jpg").write_text("nothing to see")
    said = advice(*train("--data", "photos"))
    assert "photos/cat/notes.jpg: not an image" in said
    (option,) = re.findall(r"leave them out with (.+)\.", said)
    assert begins(*train("--data", "photos", *option.split()))


def test_classes_of_one_image(advice):
    photograph("few/sofa", "few/chair", count=1)
    said = advice(*train("--data", "few"))
    assert "few/sofa/0.png: the only image of its class; two are needed" in said
    for path in re.findall(r"(\S+): the only image", said):
        shutil.copy(path, Path(path).with_name("another.png"))
    assert begins(*train("--data", "few"))


@pytest.mark.parametrize("folders", [["mine/sofa"], ["mine"]], ids=["one class", "no class"])
def test_too_few_classes(advice, folders):
    photograph(*folders)
    said = advice(*train("--data", "mine"))
    cat, dog = re.findall(r"at least two: (\S+), (\S+)\.", said)[0]
    assert ("one class only, sofa" in said) == (folders == ["mine/sofa"])
    photograph(cat, dog)
    assert begins(*train("--data", "mine"))


def test_images_too_small_for_a_network(advice):
    said = advice("train", "--data", "photos", "--model", "resnet18", "--image-size", "16")
    (pixels,) = re.findall(r"at least (\d+) pixels", said)
    assert begins("train", "--data", "photos", "--model", "resnet18", "--image-size", pixels)


def test_tiny_and_grey_images_need_no_advice():
    photograph("tiny/a", "tiny/b", shape=(3, 3, 3))
    photograph("grey/a", "grey/b", shape=(16, 16))
    assert begins(*train("--data", "tiny", "--name", "tiny"))
    assert begins(*train("--data", "grey", "--name", "grey"))


def test_grey_arrays_with_an_axis_in_the_wrong_place():
    transform = keras_resdense.transform(keras_resdense.ImageContract(size=(8, 8)))
    with pytest.raises(ValueError, match=r"it must be .*\(height, width\) in grey"):
        transform(np.zeros((1, 16, 16), "uint8"))
    assert transform(np.zeros((16, 16), "uint8")).shape == (1, 8, 8, 3)


@pytest.mark.filterwarnings("default:The weights' head")
def test_weights_of_the_hub_without_a_network(advice, here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://nowhere.invalid")
    said = advice("train", "--data", "photos", "--weights", "tv_in1k", "--model", "resnet18", "--image-size", "32")
    (name,) = re.findall(r"save it as (\S+), and pass its path", said)
    save_file({name: rule.array(name, tuple(shape)) for name, shape in TORCH["resnet18"]["tensors"]}, here / name)
    assert begins("train", "--data", "photos", "--weights", name, "--model", "resnet18", "--image-size", "32")


def test_weights_of_keras_without_a_network(here, monkeypatch):
    monkeypatch.setenv(downloads.KERAS_MIRROR, "http://nowhere.invalid")
    monkeypatch.setenv("KERAS_HOME", str(here / "home"))
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    (found,) = (row for row in keras_resdense.list_weights("resnet50v1") if row.publisher == "keras.applications")
    with pytest.raises(OSError, match="put it at") as failed:
        downloads.download(found)
    path = Path(re.findall(r"put it at (\S+), or name a mirror", str(failed.value))[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"what was downloaded elsewhere")
    monkeypatch.setattr(downloads, "digest_of", lambda file, _: found.location.partition("#")[2])
    assert downloads.download(found) == path


def test_a_missing_extra(advice, monkeypatch):
    Path("model.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (package,) = re.findall(r"pip install (\S+)", advice("predict", "model.onnx", "photos"))
    assert package in importlib.metadata.packages_distributions()["onnxruntime"]


@pytest.mark.sweep
def test_a_wrong_name_of_a_variant_a_recipe_and_a_set(advice):
    said = advice("train", "--data", "photos", "--model", "resnet2O")
    (closest, *_) = re.findall(r"Closest: (\w+)", said)
    assert begins("train", "--data", "photos", "--model", closest)
    (closest, *_) = re.findall(r"Closest: (\w+)", advice(*train("--recipe", "fasst")))
    assert begins(*train("--recipe", closest, "--name", "recipe"))
    assert "tv_in1k" in re.findall(r"There are: (.+)\.", advice("train", "--model", "resnet18", "--weights", "a9"))[0]


def test_a_run_that_exists(advice):
    shutil.copytree(RUN, "saved_models/mine")
    assert "choose another name" in advice(*train("--data", "photos", "--name", "mine"))
    assert begins(*train("--data", "photos", "--name", "other"))


def test_a_model_that_does_not_exist(advice):
    assert "does not exist: it must be a run's folder" in advice("predict", "saved_models/nothing", "photos")
