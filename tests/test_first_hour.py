"""The errors of the first hour: following their advice to the letter works."""

import contextlib
import dataclasses
import hashlib
import http.server
import importlib.metadata
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import venv
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
    """Raised when training would begin."""


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
    """Returns a function that runs a command, which must fail, and returns its message."""

    def fail(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1
        return capsys.readouterr().err

    return fail


def train(*words):
    return "train", "--model", "tiny", *map(str, words)


def begins(*words):
    """Returns True if a command begins to train, and fails otherwise."""
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


def test_a_batch_of_more_images_than_there_are(advice):
    command = train("--data", "photos", "--batch-size")
    (most,) = re.findall(r"at most (\d+)", advice(*command, "64"))
    assert begins(*command, most)


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


class Refusing(http.server.SimpleHTTPRequestHandler):
    """Refuses every request for a file of the current folder."""

    def send_head(self):
        return self.send_error(403)

    def log_message(self, *_):
        pass


class Serving(Refusing):
    send_head = http.server.SimpleHTTPRequestHandler.send_head


@contextlib.contextmanager
def publisher(port, handler):
    """Runs a web server of the current folder."""
    with http.server.ThreadingHTTPServer(("localhost", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def publish(url, archive, monkeypatch):
    """Registers the data set "published_pets" of TFDS, an archive of photos on its publisher's server."""
    import tensorflow_datasets as tfds

    class PublishedPets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            kinds = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

        def _split_generators(self, manager):
            folder = Path(manager.download_and_extract(url))
            return {split: self._generate_examples(folder) for split in ("train", "test")}

        def _generate_examples(self, folder):
            for path in sorted(folder.rglob("*.png")):
                yield str(path), {"image": str(path), "label": path.parent.name}

    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    found = tfds.download.checksums.UrlInfo(size=archive.stat().st_size, checksum=checksum, filename=archive.name)
    monkeypatch.setattr(PublishedPets, "url_infos", {url: found})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_data_set_that_cannot_be_reached(advice, here, monkeypatch):
    """The publisher's server is first off, then refuses, and at last serves another machine."""
    from tensorflow_datasets.core import constants

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    archive = Path(shutil.make_archive("pets", "zip", "photos"))
    publish(f"http://localhost:{port}/pets.zip", archive, monkeypatch)
    monkeypatch.setattr(constants, "DATA_DIR", str(here / "data"))
    command = train("--data", "published_pets", "--batch-size", 4)
    assert "does not answer" in advice(*command)
    with publisher(port, Refusing):
        said = advice(*command)
    assert "403" in said
    prepare, folder, root = re.findall(r"run `(.+?)`, copy the folder (\S+) that .+ to (\S+), and repeat", said)[0]
    with publisher(port, Serving), monkeypatch.context() as elsewhere:
        elsewhere.setattr(constants, "DATA_DIR", str(here / "elsewhere"))
        python, option, program = shlex.split(prepare)
        assert (python, option) == ("python", "-c")
        exec(program)
    # As `cp -r` does, which takes no offence at what the refused attempt left.
    shutil.copytree(here / "elsewhere" / folder, Path(root) / folder, dirs_exist_ok=True)
    assert begins(*command)
    (embedded,) = re.findall(r"you can use '(\w+)'", said)
    assert begins(*train("--data", embedded, "--name", "embedded"))


#: Commands that need a package which is not installed with this one.
EXTRAS = {
    "onnxruntime": ("predict", "model.onnx", "photos"),
    "tf2onnx": ("export", RUN, "--format", "onnx"),
    "openvino": ("export", RUN, "--format", "openvino"),
    "apache_beam": ("prepare", "photos", "--to", "prepared", "--beam="),
    "torch": train("--data", "photos", "--weights", "model.pth"),
}


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_extra(package, advice, monkeypatch):
    """The packages to install are requirements of our extras, so an index has them."""
    for name in ("model.onnx", "model.pth"):
        Path(name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    named = re.findall(rf"needs {package}: pip install (.+)", advice(*EXTRAS[package]))[0].split()
    required = {
        re.match(r"[\w-]+", text)[0].replace("-", "_") for text in importlib.metadata.requires("keras-resdense")
    }
    assert package in named and set(named) <= required


@pytest.mark.sweep
def test_the_advised_installation_of_a_missing_extra(here):
    """The environment has all packages of this one except ONNX Runtime."""
    keras_resdense.export(keras_resdense.load_model(RUN / "model.keras"), "model.onnx", "onnx")
    venv.create("environment", with_pip=True)
    (python,) = Path("environment/bin").glob("python3")
    (site,) = Path("environment/lib").glob("python*/site-packages")
    others = here / "others"
    others.mkdir()
    for path in Path(pytest.__file__).parent.parent.iterdir():
        if not path.name.startswith("onnxruntime"):
            (others / path.name).symlink_to(path)
    (site / "others.pth").write_text(str(others))

    def predict():
        command = [python, "-m", "keras_resdense", "predict", "model.onnx", "photos"]
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)

    failed = predict()
    (installation,) = re.findall(r"pip (install .+)", failed.stderr)
    assert failed.returncode == 1
    subprocess.run([python, "-m", "pip", *installation.split()], check=True, capture_output=True)
    assert "photos/cat/0.png" in predict().stdout


def test_a_wrong_name_of_a_variant(advice):
    (closest, *_) = re.findall(r"Closest: (\w+)", advice("train", "--data", "photos", "--model", "tinyy"))
    assert begins("train", "--data", "photos", "--model", closest)


def test_a_wrong_name_of_a_recipe(advice):
    (closest, *_) = re.findall(r"Closest: (\w+)", advice(*train("--recipe", "fasst")))
    assert begins(*train("--recipe", closest))


@pytest.mark.filterwarnings("default:The weights' head")
def test_a_wrong_name_of_a_weight_set(advice, here, monkeypatch):
    command = ("train", "--data", "photos", "--model", "resnet18", "--image-size", "32", "--weights")
    (listed,) = re.findall(r"There are (.+)\.", advice(*command, "a9"))
    file = here / "published.safetensors"
    save_file({name: rule.array(name, tuple(shape)) for name, shape in TORCH["resnet18"]["tensors"]}, file)
    monkeypatch.setattr(zoo, "download", lambda found, include_top: file)
    assert begins(*command, listed.split(", ")[0])


def test_a_run_that_exists(advice):
    shutil.copytree(RUN, "saved_models/mine")
    assert "choose another name" in advice(*train("--data", "photos", "--name", "mine"))
    assert begins(*train("--data", "photos", "--name", "other"))


def test_a_model_that_does_not_exist(advice, capsys):
    said = advice("predict", "saved_models/nothing", "photos")
    assert "does not exist: it must be a run's folder" in said
    assert main(["predict", str(RUN), "photos/cat/0.png"]) == 0
    assert "photos/cat/0.png" in capsys.readouterr().out
