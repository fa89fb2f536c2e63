"""The image contract: how an image becomes a network's input, as one value for training, prediction and exports.

The rules that all contracts share are those of Pillow, timm and torchvision:

* The EXIF orientation is applied. Transparent pixels are blended with white. Colour becomes grey as
  0.299 R + 0.587 G + 0.114 B, and grey becomes colour by repetition.
* Resizing is antialiased and gives whole numbers, as Pillow's does (`keras_resdense.data.resizing`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_resdense.checks import require, require_choice, require_kinds, require_whole, whole

#: Names of the files that hold a contract, and the class names, one per line.
CONTRACT_FILE, LABELS_FILE = FILES = ("image_contract.json", "labels.txt")
#: Rules that all contracts share. They are written into every file for programs in other languages.
_SHARED = {"orientation": "exif", "transparency": "on white", "antialias": True, "rounding": "whole numbers"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageContract:
    """How an image becomes a network's input.

    Attributes:
        size: Height and width of the input, in pixels.
        channels: 3 for colour, 1 for grey. Other numbers are for arrays only, not for image files.
        order: Order of the colour channels, "rgb" or "bgr".
        resize: "squash" resizes to the size and changes the aspect ratio. "shorter_side" keeps the aspect ratio and
            resizes until the image covers the size divided by `crop`.
        crop: Share of the resized image's side that the central crop keeps, in [0.01, 1].
        interpolation: "bilinear" or "bicubic".
        mean: Mean that is subtracted from each channel, 0–255, in the order of the network's channels.
        std: Standard deviation that each channel is then divided by, 0–255. With mean 0 and std 1, the network takes
            pixels 0–255.
    """

    size: tuple[int, int]
    channels: int = 3
    order: str = "rgb"
    resize: str = "squash"
    crop: float = 1.0
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        require_kinds(self)
        sides = tuple(map(whole, self.size)) if isinstance(self.size, tuple | list) else ()
        require(self, "size", len(sides) == 2 and None not in sides, "a height and a width in whole pixels")
        # JSON cannot hold NumPy numbers.
        object.__setattr__(self, "size", sides)
        require_whole(self, "channels")
        require_choice(self, "order", ("rgb", "bgr"))
        require_choice(self, "resize", ("squash", "shorter_side"))
        require(self, "crop", 0.01 <= self.crop <= 1, "from 0.01 to 1")
        require_choice(self, "interpolation", ("bilinear", "bicubic"))
        # Within these limits, float32 holds every normalised pixel.
        for field, least, most in (("mean", -1e6, 1e6), ("std", 1e-6, 1e6)):
            values = getattr(self, field)
            fits = len(values) in (1, self.channels)
            require(self, field, fits, f"one number, or one for each of the {self.channels} channels")
            require(self, field, all(least <= value <= most for value in values), f"from {least:g} to {most:g}")

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width in pixels before the central crop: `floor(size / crop)`, as in timm."""
        # Without the small number, a share such as 224 / 232 would lose a pixel by rounding.
        height, width = (math.floor(side / self.crop + 1e-6) for side in self.size)
        return height, width

    @property
    def takes_pixels(self) -> bool:
        """Whether the network takes pixels 0–255 without normalisation."""
        return set(self.mean) == {0.0} and set(self.std) == {1.0}

    def describe(self) -> str:
        """Describes in one sentence how to prepare an image."""
        height, width = self.size
        kind = "grey" if self.channels == 1 else self.order.upper()
        steps = ["turn it upright as its EXIF orientation says", "blend transparent pixels with white"]
        steps.append(f"convert it to {kind}")
        how = f"{self.interpolation}, antialiased"
        if self.resize == "squash":
            steps.append("resize it to {} × {} pixels ({})".format(*self.resized, how))
        elif self.resized[0] == self.resized[1]:
            steps.append(f"resize its shorter side to {self.resized[0]} pixels ({how})")
        else:
            steps.append("resize it to cover {} × {} pixels ({})".format(*self.resized, how))
        if self.resize != "squash" or self.crop < 1:
            steps.append(f"keep the middle {height} × {width}")
        if self.takes_pixels:
            steps.append("pass values 0–255")
        else:
            mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
            steps.append(f"subtract {mean} from values 0–255 and divide by {std}")
        return f"To prepare an image, {', '.join(steps[:-1])}, and {steps[-1]}."

    def to_json(self) -> str:
        """Returns the contract as JSON for `from_json`."""
        return json.dumps(dataclasses.asdict(self) | _SHARED)

    @classmethod
    def from_json(cls, text: str) -> ImageContract:
        """Reads a contract.

        Raises:
            ValueError: If the text is not a contract, or has rules that this version does not support.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            shared = {name: fields.pop(name) for name in _SHARED}
            contract = cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"This is not an image contract ({error!r}): {text[:200]}") from error
        if shared != _SHARED:
            raise ValueError(f"The image contract has the rules {shared}; this version supports {_SHARED}.")
        return contract


def checked_names(class_names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of classes, or raises a ValueError if one of them is not one line of text."""
    odd = [name for name in class_names or () if name.splitlines() != [name]]
    if odd:
        raise ValueError(f"class_names has {odd[0]!r}; every name must be one line of text.")
    return tuple(class_names or ())


def as_files(contract: ImageContract | None, class_names: Sequence[str] | None) -> dict[str, str]:
    """Returns names and texts of the files that hold a contract and the class names.

    Raises:
        ValueError: If a name is not one line of text.
    """
    texts = {CONTRACT_FILE: contract.to_json()} if contract else {}
    lines = "".join(f"{name}\n" for name in checked_names(class_names))
    return texts | ({LABELS_FILE: lines} if lines else {})


def from_files(folder: Path | zipfile.Path) -> tuple[ImageContract | None, tuple[str, ...] | None]:
    """Reads a contract and class names from files that `as_files` describes; None for a missing file."""
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in FILES if (folder / name).is_file()}
    contract, names = texts.get(CONTRACT_FILE), texts.get(LABELS_FILE)
    return (
        ImageContract.from_json(contract) if contract else None,
        tuple(names.removesuffix("\n").split("\n")) if names else None,
    )


def as_metadata(contract: ImageContract | None, class_names: Sequence[str]) -> dict[str, str]:
    """Returns a contract and class names as JSON, for formats whose metadata are texts with keys."""
    texts = {"image_contract": contract.to_json()} if contract else {}
    return texts | ({"class_names": json.dumps(class_names, ensure_ascii=False)} if class_names else {})


def from_metadata(texts: Mapping[str, str]) -> tuple[ImageContract | None, tuple[str, ...] | None]:
    """Reads the contract and the class names of `as_metadata`; None for what is missing."""
    contract, names = texts.get("image_contract"), texts.get("class_names")
    return ImageContract.from_json(contract) if contract else None, tuple(json.loads(names)) if names else None


def attach(path: Path, texts: Mapping[str, str]) -> None:
    """Adds the files of `as_files` to a `.keras` file, which plain Keras still opens."""
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)


def attached(path: Path) -> tuple[ImageContract | None, tuple[str, ...] | None]:
    """Reads the contract and the class names in a `.keras` file or another archive; None for what is missing."""
    with zipfile.ZipFile(path) as archive:
        return from_files(zipfile.Path(archive))
