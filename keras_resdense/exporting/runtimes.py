"""Runtimes that compute networks, one row each, and the conversion of Keras models for them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras

from keras_resdense.checks import missing_packages, require_tensorflow
from keras_resdense.exporting.exporter import Exporter, Extras, random_images, reading
from keras_resdense.exporting.folding import fold_batch_norm, rewrite_for_phones
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.inference import InferenceModel
from keras_resdense.exporting.keras_file import in_keras
from keras_resdense.exporting.openvino import open_in_openvino
from keras_resdense.exporting.quantised_training import settled, tolerating_rounding
from keras_resdense.graph import is_graph

#: Images on which a converted model is compared with the model.
COMPARED = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """A row of `RUNTIMES`.

    Attributes:
        title: Its name in messages.
        package: Package that it is imported from.
        install: Name of that package for pip.
        formats: Keys of `EXPORTERS` whose files it reads.
        exporter: Format that a Keras model is converted to; None if it computes the model itself.
        rewrite: Function that rewrites a Keras model for it.
        precisions: Precisions in which it can compute.
        opener: Function from the path of a file and a precision to the model; None for the format's own reader.
    """

    title: str
    package: str
    install: str
    formats: tuple[str, ...]
    exporter: Exporter | None = None
    rewrite: Callable[[keras.Model], keras.Model] = fold_batch_norm
    precisions: tuple[str, ...] = ("float32",)
    opener: Callable[..., InferenceModel] | None = None

    def runs(self, format: str) -> bool:
        """Returns whether it reads a format, or can take the Keras model in it."""
        return format in self.formats or format == "keras"

    def open(self, path: Path, format: str, precision: str) -> InferenceModel:
        """Opens a file of one of its formats."""
        exporter = EXPORTERS[format]
        if self.opener is None:
            return exporter.read(path)
        return reading(path, exporter.what, lambda: self.opener(path, precision=precision))


#: Every runtime, the fastest first.
RUNTIMES: dict[str, Runtime] = {
    "openvino": Runtime(
        title="OpenVINO",
        package="openvino",
        install="openvino",
        formats=("openvino", "onnx", "saved_model"),
        exporter=EXPORTERS["openvino"],
        precisions=("float32", "bfloat16"),
        opener=open_in_openvino,
    ),
    "onnxruntime": Runtime(
        title="ONNX Runtime",
        package="onnxruntime",
        install="onnxruntime",
        formats=("onnx",),
        exporter=EXPORTERS["onnx"],
    ),
    "tensorflow": Runtime(
        title="TensorFlow", package="tensorflow", install="tensorflow", formats=("keras", "saved_model")
    ),
    "litert": Runtime(
        title="LiteRT",
        package="ai_edge_litert",
        install="ai-edge-litert",
        formats=("tflite",),
        exporter=dataclasses.replace(EXPORTERS["tflite"], batch=None),
        rewrite=rewrite_for_phones,
    ),
}


def candidates(format: str, precision: str) -> list[str]:
    """Returns the installed runtimes that run a format in a precision, the fastest first.

    If TensorFlow sees a GPU, it comes first, because the others compute on the CPU.
    """
    found = [
        name
        for name, row in RUNTIMES.items()
        if precision in row.precisions
        and not missing_packages([row.package])
        and (format in row.formats or _converts(row, format))
    ]
    return sorted(found, key=lambda name: name != "tensorflow") if _has_gpu() else found


def run_model(model: keras.Model, runtime: str, precision: str) -> InferenceModel:
    """Converts a Keras model for a runtime.

    Raises:
        ValueError: If the model cannot be converted, or packages for that are missing.
        RuntimeError: If the outputs in float32 differ from the model's by more than the format's tolerance.
    """
    row = RUNTIMES[runtime]
    if row.exporter is None:
        return in_keras(row.rewrite(settled(model)) if is_graph(model) else model)
    require_tensorflow(f"runtime={runtime!r}")
    row.exporter.check_packages()
    contract, names = (getattr(model, name, None) for name in ("image_contract", "class_names"))
    images = random_images(model, contract, COMPARED).astype(model.inputs[0].dtype)
    extras = Extras(images=images, real=False, contract=contract, class_names=names or ())
    row.exporter.check(model, extras)
    # A runtime may still read the files, which Windows then keeps.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / row.exporter.file_name
        try:
            row.exporter.write(row.rewrite(settled(model)), path, extras)
        except Exception as error:
            raise ValueError(f"{model.name!r} cannot be converted for {row.title}: {error}") from error
        converted = dataclasses.replace(row.open(path, row.formats[0], precision), runtime=runtime)
    if precision == "float32":
        expected = keras.ops.convert_to_numpy(model(images, training=False))
        tolerating_rounding(row.exporter, model).compare(
            converted(images), expected, f"{model.name!r} in {row.title}", "Use another runtime, such as 'tensorflow'."
        )
    return converted


def _converts(row: Runtime, format: str) -> bool:
    """Returns whether a runtime can take a Keras model with the packages that are installed."""
    packages = row.exporter.packages if row.exporter else ()
    convertible = row.exporter is not None and keras.backend.backend() == "tensorflow"
    return format == "keras" and convertible and not missing_packages(packages)


def _has_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
