"""What a format is: how it is written, how it is read back, and what goes into every artefact beside the network."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from keras_resdense.data.contract import ImageContract, as_files
from keras_resdense.exporting import folding
from keras_resdense.files import sha256

#: Images that a runtime gets at once, where it takes more than one.
BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extras:
    """What goes into an artefact beside the network.

    Attributes:
        images: Those that the export is compared on, as the model takes them.
        real: Whether these are images, and not random.
        calibration: Images of the training data, likewise, for formats of 8 bits.
        contract: How an image becomes the model's input; None where that is not known.
        class_names: In the order of the classes' numbers; empty where they are not known.
    """

    images: np.ndarray
    real: bool = True
    calibration: np.ndarray | None = None
    contract: ImageContract | None = None
    class_names: tuple[str, ...] = ()

    def files(self) -> dict[str, str]:
        """Returns names and texts of the files that hold what is known."""
        return as_files(self.contract, self.class_names)


@dataclasses.dataclass(frozen=True)
class Runner:
    """An artefact that has been read: a function from images `(images, height, width, channels)` to its outputs.

    Attributes:
        compute: From a batch that the runtime takes to outputs `(batch, …)`, float32.
        shape: Shape of an image, `(height, width, channels)`, with what the runtime has for a side that is not fixed.
        batch: Most images at once.
        contract: How an image becomes the input; None if the artefact doesn't say.
        class_names: In the order of the classes' numbers; None if the artefact doesn't say.
    """

    compute: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int | str | None, ...]
    batch: int = BATCH
    contract: ImageContract | None = None
    class_names: tuple[str, ...] | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        parts = (images[start : start + self.batch] for start in range(0, len(images), self.batch))
        return np.concatenate([self.compute(part) for part in parts])


def largest_difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Measures the largest difference, as a share of the largest output where that is above 1."""
    return float(np.abs(outputs - expected).max() / max(1.0, np.abs(expected).max()))


def relative_noise(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Measures the root mean square of the differences, as a share of that of the outputs.

    The measure of quantised models: near the border between two classes, single images may differ by any amount.
    """
    return float(np.linalg.norm(outputs - expected) / np.linalg.norm(expected))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exporter:
    """A format. Change one with `dataclasses.replace(EXPORTERS[…], field=…)`.

    Attributes:
        file_name: Usual name of the artefact.
        tolerance: Most that `measure` may find between the model's outputs and those read back.
        measure: `largest_difference` or `relative_noise`.
        threads: Numbers of threads to run with; None for the runtime's own choice.
    """

    #: What an artefact is, as errors call it, and the packages that the format needs beside this one's.
    what: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    file_name: str
    tolerance: float = 1e-4
    measure: Callable[[np.ndarray, np.ndarray], float] = largest_difference
    threads: tuple[int | None, ...] = (None,)

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration images."""
        return False

    def check_packages(self) -> None:
        """Raises a ValueError if a package that the format needs is not installed."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"{type(self).__name__} needs {', '.join(missing)}: pip install {' '.join(self.packages)}")

    def check(self, model: keras.Model, extras: Extras) -> None:
        """Raises a ValueError if the model, or what else it takes, does not fit the format."""

    def target(self, path: Path) -> Path:
        """Returns where the artefact goes, for a path that was asked for; a ValueError if it can't go there."""
        return path

    def adapt(self, extras: Extras) -> Extras:
        """Returns what goes into the artefact, where that takes other numbers than the model does.

        Raises:
            ValueError: If the images are not what their contract says.
        """
        return extras

    def owns(self, path: Path) -> bool:
        """Says whether what is at a path is of this kind and nothing else, so that it may be replaced."""
        raise NotImplementedError

    def prepare(self, model: keras.Model) -> keras.Model:
        """Returns the model to write."""
        return folding.fold_batch_norm(model)

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
        """Writes a prepared model."""
        raise NotImplementedError

    def open(self, path: Path, threads: int | None) -> Runner:
        """Reads an artefact; `read` makes one error of whatever the runtime raises."""
        raise NotImplementedError

    def read(self, path: Path, threads: int | None = None) -> Runner:
        """Reads an artefact into a function.

        Args:
            path: Path of the artefact.
            threads: Number of threads; None for the runtime's own choice.

        Raises:
            ValueError: If the runtime is not installed, if the file is damaged or of another kind, or if it is not
                the one that its `{path}.json` gives the SHA-256 of.
        """
        check_digests(path)
        try:
            runner = self.open(path, threads)
        except ImportError as error:
            raise ValueError(f"{path} needs {error.name}: pip install {error.name}") from error
        except Exception as error:
            raise ValueError(f"{path} is not {self.what}, or it is damaged: {error}") from error

        def compute(images: np.ndarray) -> np.ndarray:
            # Some damage shows only when the runtime computes.
            try:
                return runner.compute(images)
            except Exception as error:
                raise ValueError(
                    f"{path} takes no images of shape {images.shape}, or it is damaged: {error}"
                ) from error

        return dataclasses.replace(runner, compute=compute)


def holds_only(folder: Path, names: Sequence[str]) -> bool:
    """Says whether a folder holds the first of some names, and nothing that is not one of them."""
    return (folder / names[0]).is_file() and {file.name for file in folder.iterdir()} <= set(names)


def check_images_fit(images: np.ndarray, model: keras.Model, name: str) -> None:
    """Raises a ValueError if images are not `(images, height, width, channels)` of the model's shape."""
    allowed = model.input_shape[1:]
    shape = np.shape(images)
    fits = len(shape) == 4 and all(side in (None, got) for side, got in zip(allowed, shape[1:], strict=True))
    if not fits or not len(images):
        raise ValueError(f"{name} has shape {shape}; the model takes (images, *{allowed}), at least one image.")


def digests(path: Path) -> dict[str, str]:
    """Returns the SHA-256 of an artefact's files in hexadecimal digits, by their paths beside or in it."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {file.relative_to(path.parent).as_posix(): sha256(file) for file in files}


def described(path: Path) -> Path:
    """Returns the file that says what was measured of an artefact."""
    return path.with_name(f"{path.name}.json")


def check_digests(path: Path) -> None:
    """Raises a ValueError if an artefact is not the one that the file beside it describes."""
    try:
        expected = json.loads(described(path).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        # An artefact is enough on its own, and those of earlier versions have no hash.
        return
    if path.exists() and digests(path) != expected:
        raise ValueError(
            f"{path} is damaged, or was replaced: its SHA-256 is not that in {described(path).name}. "
            "Export it again, or remove that file if the replacement is meant."
        )
