"""Downloads published weights into their publishers' usual caches. Cached weights need no network."""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from keras_resdense.files import digest_of, keras_home, staged
from keras_resdense.pretrained.catalogue import WeightSet
from keras_resdense.progress import progress
from keras_resdense.servers import find_silent

KERAS_BASE = "https://storage.googleapis.com/tensorflow/keras-applications"
#: Environment variable that names a mirror of `KERAS_BASE`; `HF_ENDPOINT` is the hub's own.
KERAS_MIRROR = "KERAS_RESDENSE_KERAS_BASE"
ATTEMPTS = 3
#: Seconds without a byte after which a download has failed. The hub has its own, `HF_HUB_DOWNLOAD_TIMEOUT`.
TIMEOUT = 30.0
#: Number of bytes per read.
PIECE = 2**16


def download(found: WeightSet, include_top: bool = True) -> Path:
    """Downloads a published set into its publisher's usual cache, unless it is there already.

    Args:
        found: The set.
        include_top: Whether to include the classifier.

    Returns:
        Path of the file.

    Raises:
        OSError: If it is not in the cache and cannot be downloaded. The error says how to do it by hand.
    """
    if found.publisher == "timm":
        return _from_hub(found)
    return _from_keras(found.location if include_top else found.no_top_location)


def origin_of(path: Path, sha256: str) -> dict[str, str]:
    """Describes a file by its name, its SHA-256 and, in the cache of the Hugging Face hub, repository and revision."""
    origin = {"file": path.name, "sha256": sha256}
    if path.parent.parent.name == "snapshots":
        origin |= {"repository": path.parts[-4].removeprefix("models--").replace("--", "/")}
        origin |= {"revision": path.parent.name}
    return origin


def _from_hub(found: WeightSet) -> Path:
    import huggingface_hub

    repository, _, revision = found.location.partition("@")
    place = {"repo_id": repository, "filename": "model.safetensors", "revision": revision or None}
    cached = huggingface_hub.try_to_load_from_cache(**place)
    if isinstance(cached, str):
        return Path(cached)
    url = f"{huggingface_hub.constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/model.safetensors"
    advice = (
        f"Download it where there is a network, save it as {repository.rpartition('/')[2]}.safetensors, and pass its "
        "path as weights= or --weights. Or name a mirror in HF_ENDPOINT."
    )
    if find_silent([url]):
        raise OSError(f"{url} could not be downloaded (no answer). {advice}")
    print(f"Downloading {url}, about {found.megabytes} MB.", file=sys.stderr, flush=True)
    try:
        with _bars_on_terminals_only():
            return Path(huggingface_hub.hf_hub_download(**place))
    except Exception as error:  # the hub's client and what it connects with raise classes of their own
        raise OSError(f"{url} could not be downloaded ({error}). {advice}") from error


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Turns off the hub's progress bar, which moves the cursor, unless it is on a terminal."""
    from huggingface_hub import utils

    disabled = utils.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            utils.enable_progress_bars()


def _from_keras(location: str) -> Path:
    file, md5 = location.split("#")
    path = keras_home() / "models" / Path(file).name
    url = f"{os.environ.get(KERAS_MIRROR, KERAS_BASE).rstrip('/')}/{file}"
    if path.is_file() and digest_of(path, "md5") == md5:
        return path
    failure = None
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            _fetch(url, path, md5)
            return path
        except (OSError, http.client.HTTPException) as error:
            failure = error
    raise OSError(
        f"{url} could not be downloaded ({failure}). Download it where there is a network and put it at "
        f"{path}, or name a mirror in {KERAS_MIRROR}."
    ) from failure


def _fetch(url: str, path: Path, md5: str) -> None:
    """Downloads a file. It gets its name when it is complete."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, staged(path) as temporary:
        size = int(answer.headers.get("Content-Length", 0))
        print(f"Downloading {url}, {size / 1e6:.0f} MB.", file=sys.stderr, flush=True)
        with open(temporary, "wb") as file, progress(path.name, size) as advance:
            while piece := answer.read(PIECE):
                advance(file.write(piece))
        if digest_of(temporary, "md5") != md5:
            raise OSError(f"what came, {temporary.stat().st_size} of {size} bytes, is damaged or another file")
