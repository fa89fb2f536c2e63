"""Exports a model: writes it in a format, reads it back and compares it with the model.

A model can be any Keras image model with one input `(batch, height, width, channels)` and one output.
Every format is float32 with batch norms folded; only `.keras` keeps them, for further training.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_resdense.checks import pick, require_tensorflow
from keras_resdense.data.contract import LABELS_FILE, checked_names
from keras_resdense.data.plan import ExportImages
from keras_resdense.exporting.exporter import (
    BATCH,
    Exporter,
    Extras,
    check_images_fit,
    random_images,
    relative_noise,
)
from keras_resdense.exporting.folding import in_full_precision
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.inference import InferenceModel
from keras_resdense.exporting.quantised_training import settled, tolerating_rounding
from keras_resdense.files import check_target, description_of, digests, staged, write_text
from keras_resdense.graph import is_graph

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_resdense.data.contract import ImageContract

#: Images whose median time is the latency, after one warm-up image.
TIMED_IMAGES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """An artefact and what was measured when it was read back.

    Attributes:
        format: Key of `EXPORTERS`.
        path: Path of the artefact.
        size: Size of its files, in bytes.
        sha256: SHA-256 of its files, in hexadecimal digits, by their paths relative to the artefact's folder.
        images: Number of images it was compared on.
        random: Whether the images were random because none were given.
        difference: Largest difference of any output from the model's.
        noise: Root mean square of the differences, relative to that of the outputs.
        agreement: Share of images for which the artefact and the model predict the same class.
        accuracy: Share of images that it classifies correctly; None without labels.
        latency: Median time for one image, in milliseconds, by number of threads.
    """

    format: str
    path: Path
    size: int
    sha256: dict[str, str]
    images: int
    random: bool
    difference: float
    noise: float
    agreement: float
    accuracy: float | None
    latency: dict[str, float]


def export(
    model: keras.Model,
    path: str | Path,
    format: str | Exporter,
    images: Any = None,
    labels: np.ndarray | None = None,
    *,
    calibration: Any = None,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Export:
    """Writes a model in a format, reads it back and compares the two.

    The measurements and the SHA-256 of every file are written to `{path}.json`, and the class names to `labels.txt` in
    the same folder. If the model has class names and an image contract (`model.class_names`, `model.image_contract`),
    the artefact contains them, too.

    Args:
        model: Any Keras model from `(batch, height, width, channels)` to one output whose last axis is classes.
        path: Path of the artefact. Its folder is created if necessary.
        format: Key of `EXPORTERS`, or a row.
        images: Inputs of the model to compare on: an array `(images, height, width, channels)`, or a data set of
            images or of images and labels, whose first 1,024 images are used. None uses 16 random images; real
            images are a stronger test.
        labels: Labels of the images, `(images,)`; default those of the data set.
        calibration: Inputs made from training images, for "tflite_int8" and "tflite_int16x8": an array, or a data set
            whose first 256 images are used.
        class_names: Names of the classes in the order of their indices; None for `model.class_names`.
        overwrite: Whether to replace an artefact of the same format. Anything else is never replaced.

    Returns:
        The artefact and its measurements.

    Raises:
        ValueError: If an argument is not allowed. Nothing was written then.
        RuntimeError: If the outputs differ by more than the format's tolerance. Nothing is left behind then.
        OSError: If the artefact cannot be written. Nothing is left behind then.
    """
    require_tensorflow("export")
    name, exporter = _find_exporter(format)
    exporter.check_packages()
    _check_model(model)
    model, exporter = settled(model), tolerating_rounding(exporter, model)
    path = exporter.target(Path(path))
    check_replaceable(path, exporter, overwrite)
    contract = _checked_contract(model)
    given, own_labels = (
        (random_images(model, contract), None) if images is None else _arrays(images, ExportImages.compared_images)
    )
    check_images_fit(given, model, "images")
    labels = own_labels if labels is None else np.asarray(labels)
    if labels is not None and labels.shape != given.shape[:1]:
        raise ValueError(f"labels has shape {labels.shape}; there are {len(given)} images, so ({len(given)},).")
    extras = Extras(
        images=given.astype(model.inputs[0].dtype),
        real=images is not None,
        calibration=None if calibration is None else _arrays(calibration, ExportImages.calibration_images)[0],
        contract=contract,
        class_names=_checked_names(class_names or getattr(model, "class_names", None) or (), model),
    )
    exporter.check(model, extras)
    adapted = exporter.adapt(extras)
    with staged(path) as temporary:
        expected = in_full_precision(model).predict(extras.images, batch_size=BATCH, verbose=0).astype("float32")
        _write(exporter, exporter.prepare(model), temporary, adapted)
        made = dataclasses.replace(_compare(name, exporter, temporary, adapted, expected, labels), path=path)
        # The old description must not stand beside the new artefact, not even for a moment.
        description_of(path).unlink(missing_ok=True)
    write_text(description_of(path), _as_json(made, model))
    if extras.class_names:
        write_text(path.with_name(LABELS_FILE), extras.files()[LABELS_FILE])
    return made


def format_table(exports: Sequence[Export]) -> str:
    """Returns a table of exports, one per line."""
    lines = [f"{'format':16}{'file':24}{'size':>12}{'difference':>12}{'agreement':>11}{'accuracy':>10}  latency"]
    for made in exports:
        accuracy = "" if made.accuracy is None else f"{made.accuracy:.2%}"
        latency = ", ".join(f"{time:.2f} ms ({threads})" for threads, time in made.latency.items())
        lines.append(
            f"{made.format:16}{made.path.name:24}{made.size / 1e6:9.2f} MB{made.difference:12.1e}"
            f"{made.agreement:11.2%}{accuracy:>10}  {latency}"
        )
    if any(made.random for made in exports):
        lines.append("Compared on random images, as none were given; real images are a stronger test.")
    return "\n".join(lines)


def _find_exporter(format: str | Exporter) -> tuple[str, Exporter]:
    if isinstance(format, Exporter):
        names = (name for name, row in EXPORTERS.items() if row.file_name == format.file_name)
        return next(names, type(format).__name__), format
    return format, pick(EXPORTERS, format, "format")


def _check_model(model: keras.Model) -> None:
    if not is_graph(model):
        kind = type(model).__name__
        raise ValueError(f"{model.name!r} is a {kind}; only functional and built sequential models can be exported.")
    if [len(tensor.shape) for tensor in model.inputs] != [4] or len(model.outputs) != 1:
        shapes = [tensor.shape for tensor in (*model.inputs, *model.outputs)]
        raise ValueError(
            f"{model.name!r} has inputs and outputs of the shapes {shapes}; "
            "an exporter takes one input, images (batch, height, width, channels), and one output."
        )


def check_replaceable(path: Path, exporter: Exporter, overwrite: bool) -> None:
    """Raises a ValueError if the path exists and may not be replaced, or holds something of another format."""
    check_target(path, overwrite)
    if path.exists() and not exporter.owns(path):
        raise ValueError(f"{path} is not {exporter.what}, so it is not overwritten: choose another path, or remove it.")


def _arrays(images: np.ndarray | tf.data.Dataset, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns images and, if a data set has them, their labels."""
    import tensorflow as tf

    if not isinstance(images, tf.data.Dataset):
        return np.asarray(images), None
    parts = images.element_spec if isinstance(images.element_spec, tuple) else (images.element_spec,)
    if not isinstance(parts[0], tf.TensorSpec):
        raise ValueError(f"A data set must give images, or images and labels; this one gives {images.element_spec}.")
    single = images.unbatch() if parts[0].shape.rank == 4 else images
    taken = [part if len(parts) > 1 else (part,) for part in single.take(most).as_numpy_iterator()]
    if not taken:
        raise ValueError("The data set of images is empty.")
    labels = np.array([part[1] for part in taken]) if len(parts) > 1 else None
    if labels is not None and labels.ndim == 2:
        labels = labels.argmax(-1)
    return np.stack([part[0] for part in taken]), labels


def _checked_contract(model: keras.Model) -> ImageContract | None:
    contract = getattr(model, "image_contract", None)
    shape = (*contract.size, contract.channels) if contract else ()
    if any(side not in (None, told) for side, told in zip(model.input_shape[1:], shape, strict=False)):
        raise ValueError(
            f"{model.name!r} takes {model.input_shape}, but its image_contract says {shape}: correct the contract."
        )
    return contract


def _checked_names(names: Sequence[str], model: keras.Model) -> tuple[str, ...]:
    if names and len(names) != model.output_shape[-1]:
        raise ValueError(f"class_names has {len(names)} names; the model has {model.output_shape[-1]} classes.")
    return checked_names(names)


def _write(exporter: Exporter, model: keras.Model, path: Path, extras: Extras) -> None:
    import tensorflow as tf

    try:
        exporter.write(model, path, extras)
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


def _compare(
    name: str, exporter: Exporter, path: Path, extras: Extras, expected: np.ndarray, labels: np.ndarray | None
) -> Export:
    """Reads an artefact back; raises a RuntimeError if its outputs differ from the model's."""
    images, latency = extras.images, {}
    for threads in exporter.threads:
        run = exporter.read(path, threads)
        outputs = run.predict(images, BATCH)
        exporter.compare(outputs, expected, name, "Nothing was written.")
        latency["own threads" if threads is None else f"{threads} thread{'s' * (threads > 1)}"] = _latency(run, images)
    choice = outputs.argmax(-1)
    return Export(
        format=name,
        path=path,
        size=sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()),
        difference=float(np.abs(outputs - expected).max()),
        noise=relative_noise(outputs, expected),
        agreement=float((choice == expected.argmax(-1)).mean()),
        accuracy=None if labels is None else float((choice == labels).mean()),
        latency=latency,
        sha256=digests(path),
        images=len(images),
        random=not extras.real,
    )


def _latency(run: InferenceModel, images: np.ndarray) -> float:
    """Returns the median time for one image, in milliseconds, after a warm-up run."""
    times = []
    for _ in range(TIMED_IMAGES + 1):
        start = time.perf_counter()
        run(images[:1])
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _as_json(made: Export, model: keras.Model) -> str:
    described = {"input_shape": model.input_shape, "output_shape": model.output_shape}
    return json.dumps({**dataclasses.asdict(made), "path": made.path.name, **described}, indent=2) + "\n"
