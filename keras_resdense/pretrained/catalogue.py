"""The published ImageNet-1k weights that fit our variants, and their download.

The rows are in `published_weights.csv`. timm's come from its package's configurations and its
`results/results-imagenet.csv` (top-1 at `input_size`); those of keras.applications from Keras's sources and
documentation, with their MD5 sums.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import os
import socket
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from keras_resdense.data.contract import ImageContract
from keras_resdense.files import sha256
from keras_resdense.pretrained.preprocessing import PREPROCESSINGS

KERAS_BASE = "https://storage.googleapis.com/tensorflow/keras-applications"
#: Environment variable that names a mirror of `KERAS_BASE`; `HF_ENDPOINT` is the hub's own.
KERAS_MIRROR = "KERAS_RESDENSE_KERAS_BASE"
FREE_LICENCES = ("apache-2.0", "bsd-3-clause", "mit")
ATTEMPTS = 3
#: Seconds without a byte after which a download has failed. The hub has its own, `HF_HUB_DOWNLOAD_TIMEOUT`.
TIMEOUT = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightSet:
    """A published set of weights.

    Attributes:
        variant: Name of the variant it fits.
        name: What `weights=` takes.
        publisher: "timm" or "keras.applications".
        location: Repository on the Hugging Face hub, with `@revision` behind it where one is pinned, or
            `folder/file#md5` under `KERAS_BASE`.
        no_top_location: The same without the classifier, where published.
        licence: As its publisher states it.
        top1: Published accuracy on ImageNet's validation images, in percent; None where not published.
        train_size: Side of the images in training, in pixels.
        train_crop: As `crop`, at `train_size`.
        input_size: Side of the images `top1` was measured at.
        crop: Share of the resized image's side that the central crop keeps then; None where not published.
        interpolation: Interpolation of the resizing; None where not published.
        preprocessing: Key of `keras_resdense.pretrained.preprocessing.PREPROCESSINGS`.
    """

    variant: str
    name: str
    publisher: str
    location: str
    no_top_location: str
    licence: str
    top1: float | None
    train_size: int
    train_crop: float | None
    input_size: int
    crop: float | None
    interpolation: str | None
    preprocessing: str

    def contract(self, size: int | tuple[int, int] | None = None, channels: int = 3) -> ImageContract:
        """Returns how an image becomes the input of a network with these weights.

        timm publishes a crop for the training size and one for the size of the test; as in timm, other sizes take
        the former. keras.applications publishes none: these are the 0.875 and the bilinear resizing usual for
        networks of their time (1512.03385, section 3.4: shorter side 256 for 224 pixels).

        Args:
            size: Height and width of the input in pixels, or the side of a square; default `input_size`.
            channels: 3, or 1 for a network adapted to grey images.
        """
        height, width = (size or self.input_size,) * 2 if not isinstance(size, tuple) else size
        at_test = (height, width) == (self.input_size, self.input_size)
        base = PREPROCESSINGS[self.preprocessing].contract((height, width), channels)
        return dataclasses.replace(
            base,
            resize="shorter_side",
            crop=(self.crop if at_test else self.train_crop) or 0.875,
            interpolation=self.interpolation or "bilinear",
        )


@functools.cache
def published_weights() -> list[WeightSet]:
    """Lists all published sets."""
    with resources.files("keras_resdense.pretrained").joinpath("published_weights.csv").open(encoding="utf-8") as file:
        return [
            WeightSet(
                **row
                | {name: float(row[name]) if row[name] else None for name in ("top1", "crop", "train_crop")}
                | {name: int(row[name]) for name in ("train_size", "input_size")}
                | {"interpolation": row["interpolation"] or None}
            )
            for row in csv.DictReader(file)
        ]


def list_weights(variant: str) -> list[WeightSet]:
    """Lists the published sets of weights of a variant, the most accurate first."""
    fitting = [found for found in published_weights() if found.variant == variant.lower()]
    return sorted(fitting, key=lambda found: -(found.top1 or 0))


def find_weights(variant: str, name: str) -> WeightSet:
    """Finds a published set.

    Args:
        variant: Name of a variant.
        name: Name of a set; "imagenet" for the most accurate one whose licence allows free use.

    Raises:
        ValueError: If there is none.
    """
    sets = list_weights(variant)
    fitting = [s for s in sets if s.name == name or (name == "imagenet" and s.licence in FREE_LICENCES)]
    if fitting:
        return fitting[0]
    names = ", ".join(s.name for s in sets) or "none"
    raise ValueError(f"weights is {name!r}: no file, and no published set of {variant}. There are: {names}.")


def set_of_file(path: Path) -> WeightSet | None:
    """Finds the published set that a file is, by its name or its folders', such as `resnet18.a1_in1k.safetensors`.

    Returns:
        The set, or None where the names tell none.
    """
    parts = path.absolute().parts
    for found in published_weights():
        if found.publisher == "timm":
            name = found.location.rpartition("/")[2]
            if path.stem == name or any(part.endswith(f"--{name}") or part == name for part in parts[:-1]):
                return found
        elif path.name in {Path(place.partition("#")[0]).name for place in (found.location, found.no_top_location)}:
            return found
    return None


def download(found: WeightSet, include_top: bool = True) -> Path:
    """Fetches a published set into its publisher's usual cache, or finds it there without network.

    Args:
        found: The set.
        include_top: Whether the classifier is needed, too.

    Returns:
        Path of the file.

    Raises:
        OSError: If it is not in the cache and cannot be had; says what to put where by hand.
    """
    if found.publisher == "timm":
        return _from_hub(found.location)
    return _from_keras(found.location if include_top else found.no_top_location)


def origin_of(path: Path) -> dict[str, str]:
    """Says what was taken: a file's name and SHA-256, and its revision where the cache of the hub tells it."""
    origin = {"file": path.name, "sha256": sha256(path)}
    if path.parent.parent.name == "snapshots":
        origin |= {"repository": path.parts[-4].removeprefix("models--").replace("--", "/")}
        origin |= {"revision": path.parent.name}
    return origin


def _from_hub(location: str) -> Path:
    import huggingface_hub

    repository, _, revision = location.partition("@")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors", revision=revision or None))
    except Exception as error:  # the hub's client and what it connects with raise classes of their own
        endpoint = huggingface_hub.constants.ENDPOINT
        raise OSError(
            f"{endpoint}/{repository}/resolve/{revision or 'main'}/model.safetensors could not be had ({error}). "
            "Download it where there is a network and pass its path as weights=, or name a mirror in HF_ENDPOINT."
        ) from error


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Lets connections made meanwhile fail where nothing comes for `TIMEOUT` seconds: `get_file` sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_keras(location: str) -> Path:
    import keras

    file, md5 = location.split("#")
    url = f"{os.environ.get(KERAS_MIRROR, KERAS_BASE).rstrip('/')}/{file}"
    failure = None
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            with _time_limit():
                return Path(keras.utils.get_file(origin=url, cache_subdir="models", file_hash=md5))
        except Exception as error:  # get_file raises no narrower class where the network fails
            failure = error
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    raise OSError(
        f"{url} could not be had ({failure}). Download it where there is a network and put it at "
        f"{home / 'models' / Path(file).name}, or name a mirror in {KERAS_MIRROR}."
    ) from failure
