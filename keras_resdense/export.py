"""Exports: an exporter is one row, and every export is read back and compared with its model.

An exporter takes any Keras image classifier whose input is one batch of images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np

#: Largest difference allowed between a float32 export's outputs and the model's.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exporter:
    """A format.

    Attributes:
        file_name: Of the artefact in a run's folder.
        write: Writes a model to a path.
        read: Reads an artefact into a function from images to outputs.
    """

    file_name: str
    write: Callable[[keras.Model, Path], None]
    read: Callable[[Path], Callable[[np.ndarray], np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """An artefact, as measured when it was read back.

    Attributes:
        format: Key of `EXPORTERS`.
        path: Where it is.
        size: Of its files, in bytes.
        difference: Largest difference of any output from the model's.
        agreement: Share of the images with the model's first choice of class.
        accuracy: Share of the images whose label it gives.
    """

    format: str
    path: Path
    size: int
    difference: float
    agreement: float
    accuracy: float


def export(model: keras.Model, folder: Path, format: str, images: np.ndarray, labels: np.ndarray) -> Export:
    """Writes a model in a format, reads it back and compares the two.

    Args:
        model: From `(batch, height, width, channels)` to `(batch, classes)`.
        folder: Existing folder to write into; an artefact of the same format in it is replaced.
        format: Key of `EXPORTERS`.
        images: To compare on, `(images, height, width, channels)`, pixels 0–255.
        labels: Their classes, `(images,)`.

    Returns:
        What was measured.

    Raises:
        ValueError: If the format is unknown, or the model's input or output does not fit it.
        RuntimeError: If the outputs differ by more than `TOLERANCE`; nothing is left behind then.
    """
    exporter = EXPORTERS.get(format)
    if exporter is None:
        raise ValueError(f"There is no format {format!r}; there are {', '.join(EXPORTERS)}.")
    images = images.astype("float32")
    expected = model.predict(images, verbose=0)
    path = folder / exporter.file_name
    with staged(path) as temporary:
        exporter.write(model, temporary)
        outputs = exporter.read(temporary)(images)
        difference = float(np.abs(outputs - expected).max())
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{format} differs from the model by {difference:.2g}, more than {TOLERANCE:.0e}.")
    choice = outputs.argmax(-1)
    return Export(
        format=format,
        path=path,
        size=_size(path),
        difference=difference,
        agreement=float((choice == expected.argmax(-1)).mean()),
        accuracy=float((choice == labels).mean()),
    )


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which takes the place of `path` if all goes well."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def _read_keras(path: Path):
    model = keras.saving.load_model(path, compile=False)
    return lambda images: model.predict(images, verbose=0)


def _write_saved_model(model: keras.Model, path: Path) -> None:
    model.export(path, format="tf_saved_model", verbose=False)


def _read_saved_model(path: Path):
    import tensorflow as tf

    artefact = tf.saved_model.load(str(path))
    return lambda images: artefact.serve(images).numpy()


def _write_tflite(model: keras.Model, path: Path) -> None:
    import tensorflow as tf

    if len(model.inputs) != 1 or None in model.input_shape[1:]:
        raise ValueError(f"TFLite needs one input of a fixed size; this model takes {model.input_shape}.")
    archive = keras.export.ExportArchive()
    archive.track(model)
    images = tf.TensorSpec((1, *model.input_shape[1:]), model.inputs[0].dtype, name="images")
    archive.add_endpoint("serve", lambda images: model(images, training=False), input_signature=[images])
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def _read_tflite(path: Path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])[0]

    return lambda images: np.stack([run(image) for image in images])


EXPORTERS = {
    "keras": Exporter(file_name="model.keras", write=keras.Model.save, read=_read_keras),
    "saved_model": Exporter(file_name="saved_model", write=_write_saved_model, read=_read_saved_model),
    "tflite": Exporter(file_name="model.tflite", write=_write_tflite, read=_read_tflite),
}
