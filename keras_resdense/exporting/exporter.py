"""The base class of formats, which writes and reads artefacts, and what artefacts hold besides the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from keras_resdense.checks import require_packages
from keras_resdense.data.contract import ImageContract, as_files, as_metadata
from keras_resdense.exporting import folding
from keras_resdense.exporting.inference import InferenceModel
from keras_resdense.files import check_digests

#: Images in a batch, for runtimes that take more than one.
BATCH = 64
#: Number of random images, if no images are given.
RANDOM = 16
#: Side of the random images, if the model takes any size.
RANDOM_SIDE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extras:
    """What goes into an artefact besides the network.

    Attributes:
        images: Inputs of the model to compare the artefact on.
        real: Whether these are real images, not random ones.
        calibration: Inputs of the model made from training data, for 8-bit formats.
        contract: How an image becomes the model's input; None if unknown.
        class_names: Names of the classes in the order of their indices; empty if unknown.
    """

    images: np.ndarray
    real: bool = True
    calibration: np.ndarray | None = None
    contract: ImageContract | None = None
    class_names: tuple[str, ...] = ()

    def files(self) -> dict[str, str]:
        """Returns the files of the image contract and the class names, as far as these are known: names and texts."""
        return as_files(self.contract, self.class_names)

    def metadata(self) -> dict[str, str]:
        """Returns the image contract and the class names, as far as these are known: keys and JSON."""
        return as_metadata(self.contract, self.class_names)


def largest_difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Measures the largest difference, relative to the largest output if that is above 1."""
    return float(np.abs(outputs - expected).max() / max(1.0, np.abs(expected).max()))


def relative_noise(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Measures the root mean square of the differences, relative to that of the outputs.

    Use it for quantised models: near the border between two classes, the output for one image can differ by any amount.
    """
    return float(np.linalg.norm(outputs - expected) / np.linalg.norm(expected))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exporter:
    """A format. Change one with `dataclasses.replace(EXPORTERS[…], field=…)`.

    Attributes:
        file_name: Default name of the artefact.
        tolerance: Largest allowed `measure` between the outputs of the model and of the artefact.
        measure: `largest_difference` or `relative_noise`.
        threads: Numbers of threads to compare with; None for the runtime's default.
    """

    #: Description of an artefact for errors, packages that the format needs, and the runtime that reads it.
    what: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    runtime: ClassVar[str]

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
        require_packages(type(self).__name__, self.packages, self.packages)

    def check(self, model: keras.Model, extras: Extras) -> None:
        """Raises a ValueError if the model or the extras do not fit the format."""

    def compare(self, outputs: np.ndarray, expected: np.ndarray, what: str, advice: str) -> None:
        """Raises a RuntimeError if the outputs of an artefact differ from the model's by more than the tolerance."""
        difference = self.measure(outputs, expected)
        if not difference <= self.tolerance:
            raise RuntimeError(
                f"{what} differs from the model: {self.measure.__name__} is {difference:.2g}, "
                f"{self.tolerance:g} is allowed. {advice}"
            )

    def target(self, path: Path) -> Path:
        """Returns the artefact's path for the path that was asked for; raises a ValueError if it is not allowed."""
        return path

    def adapt(self, extras: Extras) -> Extras:
        """Converts the extras for artefacts whose inputs have other values than the model's.

        Raises:
            ValueError: If the images do not agree with their contract.
        """
        return extras

    def owns(self, path: Path) -> bool:
        """Returns whether a path holds an artefact of this format and nothing else, so that it may be replaced."""
        raise NotImplementedError

    def prepare(self, model: keras.Model) -> keras.Model:
        """Returns the model to write."""
        return folding.fold_batch_norm(model)

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
        """Writes a prepared model."""
        raise NotImplementedError

    def open(self, path: Path, threads: int | None) -> InferenceModel:
        """Reads an artefact; `read` turns all errors of the runtime into a ValueError."""
        raise NotImplementedError

    def read(self, path: Path, threads: int | None = None) -> InferenceModel:
        """Reads an artefact into a function.

        Args:
            path: Path of the artefact.
            threads: Number of threads; None for the runtime's default.

        Raises:
            ValueError: If the runtime is not installed, if the file is damaged or of another format, or if its SHA-256
                differs from that in `{path}.json`.
        """
        check_digests(path)
        opened = reading(path, self.what, lambda: self.open(path, threads))
        return dataclasses.replace(opened, runtime=self.runtime, path=path)


def reading(path: Path, what: str, open: Callable[[], InferenceModel]) -> InferenceModel:
    """Opens a file, and turns all errors of its runtime into a ValueError, also those of later calls.

    Args:
        path: Path of the file, for errors.
        what: What the file should be, for errors.
        open: Function that opens it.
    """
    try:
        opened = open()
    except ImportError as error:
        raise ValueError(f"{path} needs {error.name}: pip install {error.name}") from error
    except Exception as error:
        raise ValueError(f"{path} is not {what}, or it is damaged: {error}") from error

    def compute(images: np.ndarray) -> np.ndarray:
        # Some damage becomes visible only when the runtime computes.
        try:
            return opened.compute(images)
        except Exception as error:
            raise ValueError(f"{path} takes no images of shape {images.shape}, or it is damaged: {error}") from error

    return dataclasses.replace(opened, compute=compute)


def holds_only(folder: Path, names: Sequence[str]) -> bool:
    """Returns whether a folder holds the first of the names, and only files of these names."""
    return (folder / names[0]).is_file() and {file.name for file in folder.iterdir()} <= set(names)


def random_images(model: keras.Model, contract: ImageContract | None, count: int = RANDOM) -> np.ndarray:
    """Returns smooth images of many colours, because the outputs of a network hardly vary over plain noise."""
    size = contract.size if contract else (RANDOM_SIDE, RANDOM_SIDE)
    sides = [side or wanted for side, wanted in zip(model.input_shape[1:3], size, strict=True)]
    corners = np.random.default_rng(0).integers(0, 256, (count, 4, 4, model.input_shape[-1]))
    pixels = np.asarray(keras.ops.image.resize(corners.astype("float32"), sides, "bilinear")).round()
    return (pixels - contract.mean) / contract.std if contract else pixels


def check_images_fit(images: np.ndarray, model: keras.Model, name: str) -> None:
    """Raises a ValueError if images are not `(images, height, width, channels)` of the model's shape."""
    allowed = model.input_shape[1:]
    shape = np.shape(images)
    fits = len(shape) == 4 and all(side in (None, got) for side, got in zip(allowed, shape[1:], strict=True))
    if not fits or not len(images):
        raise ValueError(f"{name} has shape {shape}; the model takes (images, *{allowed}), at least one image.")
