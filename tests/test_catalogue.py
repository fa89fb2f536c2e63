"""Published weights: rows compared with Keras's sources, and downloads from a local server."""

import dataclasses
import hashlib
import http.server
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from keras import applications
from safetensors.numpy import save_file

import keras_resdense
from keras_resdense import servers
from keras_resdense.pretrained import catalogue, downloads
from keras_resdense.pretrained.preprocessing import PREPROCESSINGS
from tests.golden import rule
from tests.test_parity import TORCH
from tests.zoo_facts import KERAS, sweep


def test_rows_make_sense():
    sets = catalogue.published_weights()
    assert len({(found.variant, found.name) for found in sets}) == len(sets)
    for found in sets:
        assert found.variant in keras_resdense.VARIANTS and found.preprocessing in PREPROCESSINGS
        assert found.top1 is None or 60 < found.top1 < 90
        assert 128 <= found.train_size <= 320 and 128 <= found.input_size <= 320


def test_sums_are_those_in_keras_sources():
    folder = Path(applications.__file__).parent.parent / "src/applications"
    sources = "".join((folder / name).read_text() for name in ("resnet.py", "densenet.py"))
    for found in catalogue.published_weights():
        if found.publisher == "keras.applications":
            for location in (found.location, found.no_top_location):
                file, md5 = location.split("#")
                assert len(md5) == 32 and md5 in sources
    assert downloads.KERAS_BASE in sources.replace('"\n    "', "")


def numbers(found):
    """Counts the parameters of a published file with its publisher's own network."""
    if found.publisher == "timm":
        return sum(math.prod(shape) for _, shape in TORCH[found.variant]["tensors"])
    return getattr(applications, KERAS[found.variant])(weights=None).count_params()


@pytest.mark.parametrize("variant", sweep(sorted({found.variant for found in catalogue.published_weights()})))
def test_downloads_are_as_large_as_said(variant):
    for found in keras_resdense.list_weights(variant):
        assert found.megabytes == round(4 * numbers(found) / 1e6)


def test_imagenet_is_the_most_accurate_free_set():
    assert keras_resdense.list_weights("ResNet50")[0].top1 == 81.24
    best = catalogue.find_weights("resnext101_32x8d", "imagenet")
    assert best.licence in catalogue.FREE_LICENCES
    unfree = catalogue.find_weights("resnext101_32x8d", "fb_swsl_ig1b_ft_in1k")
    assert unfree.top1 > best.top1 and unfree.licence == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    "variant, name", [("resnet50", "nothing"), ("seresnet18", "imagenet"), ("resnet20", "imagenet")]
)
def test_unknown_sets_are_refused_with_those_there_are(variant, name):
    with pytest.raises(ValueError, match=f"There is no file or {variant} weight set '{name}'. There are "):
        keras_resdense.create_model(variant, weights=name)


def test_a_row_takes_the_weights_of_the_variant_it_comes_from():
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet50"], output_stride=8, weight_decay=1e-4, drop_path=0.1)
    with pytest.raises(
        ValueError, match="no file or resnet50 weight set 'a1-in1k'. Closest: a1_in1k,.* There are imagenet, a1_in1k"
    ):
        keras_resdense.create_model(row, weights="a1-in1k")
    with pytest.raises(ValueError, match="No published weights fit this row"):
        keras_resdense.create_model(dataclasses.replace(row, groups=2), weights="imagenet")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` by path, closes the connection halfway for those in `cut`, and sends nothing for `stall`."""

    files: dict[str, bytes] = {}
    cut: set[str] = set()
    stall: set[str] = set()

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            if self.path in self.stall:
                threading.Event().wait(3)
            self.wfile.write(content[: len(content) // 2] if self.path in self.cut | self.stall else content)

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Server, "files", {})
    monkeypatch.setattr(Server, "cut", set())
    monkeypatch.setattr(Server, "stall", set())
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def row(server, tmp_path, monkeypatch):
    """A set of keras.applications on the local server, with the checksum of the served file."""
    content = np.random.default_rng(0).bytes(200_000)
    Server.files["/resnet/weights.h5"] = content
    monkeypatch.setenv("KERAS_RESDENSE_KERAS_BASE", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path), raising=False)
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    location = f"resnet/weights.h5#{hashlib.md5(content).hexdigest()}"
    return catalogue.WeightSet(
        variant="resnet50v1",
        name="keras",
        publisher="keras.applications",
        location=location,
        no_top_location=location,
        licence="mit",
        megabytes=103,
        top1=74.9,
        train_size=224,
        train_crop=None,
        input_size=224,
        crop=None,
        interpolation=None,
        preprocessing="caffe",
    )


def test_download_then_cache_without_the_server(row, server, capsys):
    path = downloads.download(row)
    assert path.read_bytes() == Server.files["/resnet/weights.h5"]
    told = capsys.readouterr()
    assert re.fullmatch(r"Downloading http://127\.0\.0\.1:\d+/resnet/weights\.h5, 0 MB\.\n", told.err)
    assert not told.out  # no bar, which would fill a log file
    Server.files.clear()
    assert downloads.download(row) == path
    assert not capsys.readouterr().err


@pytest.mark.parametrize("fault", ["404", "cut", "changed", "stall"])
def test_failed_downloads_say_what_to_put_where(row, fault, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    if fault == "404":
        Server.files.clear()
    elif fault == "stall":
        Server.stall.add("/resnet/weights.h5")
    elif fault == "cut":
        Server.cut.add("/resnet/weights.h5")
    else:
        Server.files["/resnet/weights.h5"] = b"something else"
    with pytest.raises(
        OSError, match=r"resnet/weights.h5 could not be downloaded .*put it at .*models/weights.h5, or name a mirror"
    ):
        downloads.download(row)


HUB = """
import json, sys, warnings
import keras_resdense
from keras_resdense import servers
model = keras_resdense.ResNet18(weights="tv_in1k", input_shape=(32, 32, 3))
print(json.dumps([float(model.get_layer("predictions").bias.numpy()[0]), model.weights_origin]))
"""


def run_hub(endpoint, home):
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "1"
    return subprocess.run([sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def hub(server, tmp_path):
    """Makes the local server a mirror of the hub with one set. Returns its address and the loading output."""
    tensors = {name: rule.array(name, tuple(shape)) for name, shape in TORCH["resnet18"]["tensors"]}
    save_file(tensors, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    Server.files["/timm/resnet18.tv_in1k/resolve/main/model.safetensors"] = content
    origin = {"file": "model.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
    origin |= {"repository": "timm/resnet18.tv_in1k", "revision": "0" * 40}
    expected = [pytest.approx(float(rule.array("fc.bias", (1000,))[0])), origin]
    return f"http://127.0.0.1:{server.server_port}", expected


NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("then_offline", sweep([False, True], [False]))
def test_the_hub_through_a_mirror_then_its_cache(hub, then_offline, tmp_path):
    endpoint, expected = hub
    for address in (endpoint, NOWHERE)[: 1 + then_offline]:
        done = run_hub(address, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        assert ("model.safetensors, about 47 MB.\n" in done.stderr) == (address == endpoint)
        assert "\r" not in done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.sweep
def test_without_the_hub_and_its_cache_the_error_says_what_to_do(hub, tmp_path):
    failed = run_hub(NOWHERE, tmp_path / "empty")
    assert failed.returncode == 1
    assert (
        f"OSError: {NOWHERE}/timm/resnet18.tv_in1k/resolve/main/model.safetensors could not be downloaded"
        in failed.stderr
    )
    assert "save it as resnet18.tv_in1k.safetensors, and pass its path as weights= or --weights" in failed.stderr

    Server.stall.add("/timm/resnet18.tv_in1k/resolve/main/model.safetensors")
    stalled = run_hub(hub[0], tmp_path / "stalled")
    assert stalled.returncode == 1 and "model.safetensors could not be downloaded" in stalled.stderr


def test_a_revision_of_the_hub_can_be_pinned(row, server, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda **place: asked.append((place["repo_id"], place["revision"])) or "."
    )
    for location in ("timm/resnet18.tv_in1k", "timm/resnet18.tv_in1k@0123abc"):
        downloads.download(dataclasses.replace(row, publisher="timm", location=location))
    place = "timm/resnet18.tv_in1k"
    assert asked == [(place, None), (place, "0123abc")]


def test_servers_that_do_not_answer_are_found_in_time(server, monkeypatch):
    """One server accepts the connection and sends nothing. An error for a missing file counts as an answer."""
    monkeypatch.setattr(servers, "PATIENCE", 0.5)
    answering = f"http://127.0.0.1:{server.server_port}/missing"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        assert servers.find_silent([answering]) is None
        assert servers.find_silent([answering, address, "http://nowhere.invalid/file"]) == address
