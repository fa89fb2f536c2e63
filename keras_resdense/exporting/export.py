"""Exports: an exporter is one row, and every export is read back and compared with its model.

An exporter takes any Keras image model with one input `(batch, height, width, channels)` and one output.
Whatever it is trained in, it is exported in float32 and rewritten for inference, but for plain Keras,
which stays fit to be trained on.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_resdense.checks import pick
from keras_resdense.exporting.formats import (
    EXPORTERS,
    Exporter,
    Runner,
    check_images_fit,
    in_full_precision,
    relative_noise,
)
from keras_resdense.files import check_target, staged
from keras_resdense.graph import is_graph
from keras_resdense.networks.model import BATCH

#: Single images that latency is the median of, after the warm-up.
TIMED_IMAGES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """An artefact, as measured when it was read back.

    Attributes:
        format: Key of `EXPORTERS`.
        path: Where it is.
        size: Of its files, in bytes.
        difference: Largest difference of any output from the model's.
        noise: Root mean square of the differences, as a share of that of the outputs.
        agreement: Share of the images with the model's first choice of class.
        accuracy: Share of the images whose label it gives; None without labels.
        latency: Median time for one image, in milliseconds, by threads.
    """

    format: str
    path: Path
    size: int
    difference: float
    noise: float
    agreement: float
    accuracy: float | None
    latency: dict[str, float]


def export(
    model: keras.Model,
    path: str | Path,
    format: str | Exporter,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    calibration: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    overwrite: bool = False,
) -> Export:
    """Writes a model in a format, reads it back and compares the two.

    What was measured is written beside the artefact as `{path}.json`, the names of the classes as `labels.txt`.

    Args:
        model: Any Keras model from `(batch, height, width, channels)` to one output whose last axis is classes.
        path: Of the artefact; its folder is made where it is missing.
        format: Key of `EXPORTERS`, or a row.
        images: To compare on, `(images, height, width, channels)`, pixels 0–255; real ones prove more.
        labels: Their classes, `(images,)`.
        calibration: Images of the training data, likewise, for "tflite_int8" and "tflite_int16x8".
        class_names: In the order of the classes' numbers.
        overwrite: Whether an artefact of that path may be replaced.

    Returns:
        What was measured.

    Raises:
        ValueError: If an argument makes no sense; nothing has been done then.
        RuntimeError: If the outputs differ by more than the format's tolerance; nothing is left behind then.
    """
    name, exporter = _find_exporter(format)
    path = Path(path)
    _check_model(model)
    check_images_fit(images, model, "images")
    if labels is not None and np.shape(labels) != np.shape(images)[:1]:
        raise ValueError(f"labels has shape {np.shape(labels)}; there are {len(images)} images, so ({len(images)},).")
    if class_names and len(class_names) != model.output_shape[-1]:
        raise ValueError(f"class_names has {len(class_names)} names; the model tells {model.output_shape[-1]} classes.")
    check_target(path, overwrite)
    exporter.check(model, calibration)
    with staged(path) as temporary:
        images = images.astype(model.inputs[0].dtype)
        expected = in_full_precision(model).predict(images, batch_size=BATCH, verbose=0).astype("float32")
        exporter.write(exporter.prepare(model), temporary, calibration)
        made = _compare(name, exporter, temporary, images, expected, labels)
    made = dataclasses.replace(made, path=path)
    _write_text(path.with_name(f"{path.name}.json"), _as_json(made, model))
    if class_names:
        _write_text(path.with_name("labels.txt"), "\n".join(class_names) + "\n")
    return made


def format_table(exports: Sequence[Export]) -> str:
    """Returns a table of exports, a line each."""
    lines = [f"{'format':16}{'file':24}{'size':>12}{'difference':>12}{'agreement':>11}{'accuracy':>10}  latency"]
    for made in exports:
        accuracy = "" if made.accuracy is None else f"{made.accuracy:.2%}"
        latency = ", ".join(f"{time:.2f} ms ({threads})" for threads, time in made.latency.items())
        lines.append(
            f"{made.format:16}{made.path.name:24}{made.size / 1e6:9.2f} MB{made.difference:12.1e}"
            f"{made.agreement:11.2%}{accuracy:>10}  {latency}"
        )
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


def _compare(
    name: str, exporter: Exporter, path: Path, images: np.ndarray, expected: np.ndarray, labels: np.ndarray | None
) -> Export:
    """Reads an artefact back; raises a RuntimeError if it is not the model's."""
    latency = {}
    for threads in exporter.threads:
        run = exporter.read(path, threads)
        outputs = run(images)
        difference = exporter.measure(outputs, expected)
        if not difference <= exporter.tolerance:
            raise RuntimeError(
                f"{name} differs from the model: {exporter.measure.__name__} is {difference:.2g}, "
                f"{exporter.tolerance:g} is allowed. Nothing was written."
            )
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
    )


def _latency(run: Runner, images: np.ndarray) -> float:
    """Returns the median time for one image, in milliseconds; the first run does not count."""
    times = []
    for _ in range(TIMED_IMAGES + 1):
        start = time.perf_counter()
        run(images[:1])
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _as_json(made: Export, model: keras.Model) -> str:
    described = {"input_shape": model.input_shape, "output_shape": model.output_shape}
    return json.dumps({**dataclasses.asdict(made), "path": made.path.name, **described}, indent=2) + "\n"


def _write_text(path: Path, text: str) -> None:
    with staged(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
