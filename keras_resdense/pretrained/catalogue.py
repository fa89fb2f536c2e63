"""The published ImageNet-1k weights that fit our variants.

The rows are in `published_weights.csv`. Those of timm are from its model configurations and its
`results/results-imagenet.csv` (top-1 at `input_size`). Those of keras.applications, with their MD5 sums, are from
Keras's sources and documentation.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from importlib import resources
from pathlib import Path

from keras_resdense.checks import pick
from keras_resdense.data.contract import ImageContract
from keras_resdense.pretrained.preprocessing import PREPROCESSINGS

FREE_LICENCES = ("apache-2.0", "bsd-3-clause", "mit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightSet:
    """A published set of weights.

    Attributes:
        variant: Name of the variant it fits.
        name: What `weights=` takes.
        publisher: "timm" or "keras.applications".
        location: Repository on the Hugging Face hub, followed by `@revision` if a revision is pinned, or
            `folder/file#md5` relative to the `KERAS_BASE` of `downloads`.
        no_top_location: Location of the weights without the classifier, if published.
        licence: Licence that its publisher states.
        megabytes: Approximate size of the download, in millions of bytes (4 bytes per number).
        top1: Published accuracy on ImageNet's validation images, in percent; None if not published.
        train_size: Side of the images in training, in pixels.
        train_crop: As `crop`, but at `train_size`.
        input_size: Side of the images that `top1` was measured with, in pixels.
        crop: Share of the resized image's side that the central crop keeps at `input_size`; None if not published.
        interpolation: Interpolation of the resizing; None if not published.
        preprocessing: Key of `keras_resdense.pretrained.preprocessing.PREPROCESSINGS`.
    """

    variant: str
    name: str
    publisher: str
    location: str
    no_top_location: str
    licence: str
    megabytes: int
    top1: float | None
    train_size: int
    train_crop: float | None
    input_size: int
    crop: float | None
    interpolation: str | None
    preprocessing: str

    def contract(self, size: int | tuple[int, int] | None = None, channels: int = 3) -> ImageContract:
        """Returns the image contract of a network with these weights.

        timm publishes one crop for the training size and one for the test size. As in timm, other sizes use the first.
        keras.applications publishes no crop. Its weights use a crop of 0.875 and bilinear resizing, as was usual
        (1512.03385, section 3.4: a shorter side of 256 for 224 pixels).

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
                | {name: int(row[name]) for name in ("megabytes", "train_size", "input_size")}
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
        name: Name of a set; "imagenet" for the most accurate set whose licence allows free use.

    Raises:
        ValueError: If there is no such set.
    """
    sets = list_weights(variant)
    free = [("imagenet", found) for found in sets if found.licence in FREE_LICENCES]
    return pick(dict([*free[:1], *((found.name, found) for found in sets)]), name, f"file or {variant} weight set")


def set_of_file(path: Path) -> WeightSet | None:
    """Finds the published set of a file by the names of the file and its folders.

    Returns:
        The set, or None if no name is that of a set, such as `resnet18.a1_in1k.safetensors`.
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
