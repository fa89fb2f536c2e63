"""The formats of exports, a row each: how one is written, and how it is read back."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_resdense.data.contract import ImageContract, attached
from keras_resdense.exporting import folding
from keras_resdense.exporting.endpoints import files_endpoint, freeze, pixels_endpoint, write_endpoints
from keras_resdense.exporting.quantisation import dequantise, quantise

#: Operators that current runtimes know.
ONNX_OPSET = 24


#: The newest that tf2onnx writes; the file is raised from it.
_CONVERTED_OPSET = 18


#: Images that a runtime gets at once, where it takes more than one.
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Runner:
    """An artefact that has been read: a function from images `(images, height, width, channels)` to its outputs.

    Attributes:
        compute: From a batch that the runtime takes to outputs `(batch, …)`, float32.
        shape: Of an image, `(height, width, channels)`, with what the runtime has for a side that is not fixed.
        batch: Most images at once.
        contract: How an image becomes the model's input; None where the file does not say.
        class_names: In the order of the classes' numbers; None where the file does not say.
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

    file_name: str
    tolerance: float = 1e-4
    measure: Callable[[np.ndarray, np.ndarray], float] = largest_difference
    threads: tuple[int | None, ...] = (None,)

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration images."""
        return False

    def check(self, model: keras.Model, calibration: np.ndarray | None) -> None:
        """Raises a ValueError if the model, or what else it takes, does not fit the format."""

    def prepare(self, model: keras.Model) -> keras.Model:
        """Returns the model to write."""
        return folding.fold_batch_norm(model)

    def write(self, model: keras.Model, path: Path, calibration: np.ndarray | None) -> None:
        """Writes a prepared model."""
        raise NotImplementedError

    def read(self, path: Path, threads: int | None = None) -> Runner:
        """Reads an artefact into a function.

        Raises:
            ValueError: If the file is damaged or of another kind.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainKeras(Exporter):
    """Keras's own file, which needs nothing but Keras; its batch norms are kept, for training on."""

    def prepare(self, model: keras.Model) -> keras.Model:
        return model

    def write(self, model: keras.Model, path: Path, calibration: np.ndarray | None) -> None:
        model.save(path)

    def read(self, path: Path, threads: int | None = None) -> Runner:
        with _reading(path, "a Keras model"):
            model = in_full_precision(keras.saving.load_model(path, compile=False))
        contract, names = attached(path)
        return Runner(model.predict_on_batch, model.input_shape[1:], contract=contract, class_names=names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedModel(Exporter):
    """TensorFlow's format, for TensorFlow Serving and, as a `keras.layers.TFSMLayer`, for Keras.

    Its signature `serving_default` takes `images`, a batch of pixels as the model does. `serve_images` takes
    `encoded`, a batch of JPEG or PNG files as strings, and resizes each to the model's size, or, where
    that is not fixed, needs images of one size; it is there for 1, 3 and 4 channels (4: PNG only).
    Both give `outputs`.

    Attributes:
        frozen: Whether weights are constants of the graph. TensorFlow lays these out once, and variables for each
            batch, so that few images at once take less time; but constants take some twenty times their size in memory.
    """

    frozen: bool = False

    def write(self, model: keras.Model, path: Path, calibration: np.ndarray | None) -> None:
        compute = freeze(model) if self.frozen else partial(model, training=False)
        endpoints = {"serving_default": pixels_endpoint(model, compute)}
        if None not in model.input_shape[1:] and model.input_shape[-1] in (1, 3):
            endpoints["serve_images"] = files_endpoint(model, compute)
        write_endpoints(endpoints, path)

    def read(self, path: Path, threads: int | None = None) -> Runner:
        import tensorflow as tf

        with _reading(path, "a SavedModel with the signature serving_default"):
            artefact = tf.saved_model.load(str(path))
            signature = artefact.signatures["serving_default"].structured_input_signature[1]
            dtype, shape = signature["images"].dtype.as_numpy_dtype, tuple(signature["images"].shape[1:])

        def compute(images: np.ndarray) -> np.ndarray:
            # A signature alone does not keep its variables alive: the artefact is asked for it.
            return artefact.signatures["serving_default"](images=tf.constant(images.astype(dtype)))["outputs"].numpy()

        return Runner(compute, shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFLite(Exporter):
    """LiteRT's format, for phones: built-in operations only, an input `images` and an output `outputs`.

    Attributes:
        kind: "float32"; "float16", weights in half precision; "dynamic", weights of 8 bits; "int8",
            weights, activations, input and output of 8 bits; "int16x8", activations of 16 bits.
        batch: Images at once; None for any number.
        pixels: "float32", or "uint8" for an input of bytes, as cameras give them.
    """

    threads: tuple[int | None, ...] = (1, 2)
    kind: str = "float32"
    batch: int | None = 1
    pixels: str = "float32"

    @property
    def calibrated(self) -> bool:
        return self.kind in ("int8", "int16x8")

    def check(self, model: keras.Model, calibration: np.ndarray | None) -> None:
        if self.kind not in _TFLITE_KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(_TFLITE_KINDS)}.")
        if self.pixels not in ("float32", "uint8"):
            raise ValueError(f"pixels is {self.pixels!r}; it must be 'float32' or 'uint8'.")
        if None in model.input_shape[1:]:
            raise ValueError(
                f"TFLite needs images of one size; this model takes {model.input_shape}. "
                "Build it with a fixed input_shape and set its weights."
            )
        if self.calibrated:
            if calibration is None:
                raise ValueError(
                    f"{self.kind} needs calibration images, some hundreds of those the model was trained on, "
                    "to know the range of every activation: export(…, calibration=images)."
                )
            check_images_fit(calibration, model, "calibration")
            _warn_of_calibration(calibration, model)

    def prepare(self, model: keras.Model) -> keras.Model:
        return folding.rewrite_for_phones(model)

    def write(self, model: keras.Model, path: Path, calibration: np.ndarray | None) -> None:
        import tensorflow as tf

        # Full integer models take their bytes by quantisation, the others by a cast.
        pixels = "float32" if self.kind == "int8" else self.pixels
        with tempfile.TemporaryDirectory() as folder:
            compute = partial(model, training=False)
            write_endpoints({"serving_default": pixels_endpoint(model, compute, self.batch, pixels)}, Path(folder))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            if self.kind != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if self.kind == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if self.calibrated:
                examples = calibration.astype(pixels)
                converter.representative_dataset = lambda: ([image[None]] for image in examples)
            if self.kind == "int8":
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = tf.uint8 if self.pixels == "uint8" else tf.int8
                converter.inference_output_type = tf.int8
            if self.kind == "int16x8":
                converter.target_spec.supported_ops = [
                    tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
                ]
            path.write_bytes(converter.convert())

    def read(self, path: Path, threads: int | None = None) -> Runner:
        from ai_edge_litert.interpreter import Interpreter

        with _reading(path, "a TFLite model from images to one output"):
            interpreter = Interpreter(model_path=str(path), num_threads=threads or os.cpu_count())
            interpreter.allocate_tensors()
            (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

        def compute(images: np.ndarray) -> np.ndarray:
            if len(images) != interpreter.get_input_details()[0]["shape"][0]:
                interpreter.resize_tensor_input(source["index"], images.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(source["index"], quantise(images, source))
            interpreter.invoke()
            return dequantise(interpreter.get_tensor(target["index"]), target)

        batch = source["shape_signature"][0]
        return Runner(compute, tuple(source["shape"][1:].tolist()), BATCH if batch == -1 else batch)


_TFLITE_KINDS = ("float32", "float16", "dynamic", "int8", "int16x8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ONNX(Exporter):
    """ONNX, for ONNX Runtime and whatever else reads it: an input `images`, any number at once, an output `outputs`.

    Attributes:
        opset: Version of the operators.
    """

    threads: tuple[int | None, ...] = (1, 2)
    opset: int = ONNX_OPSET

    def check(self, model: keras.Model, calibration: np.ndarray | None) -> None:
        missing = [name for name in ("onnx", "onnxruntime", "tf2onnx") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"ONNX needs {', '.join(missing)}: install keras-resdense[onnx].")

    def write(self, model: keras.Model, path: Path, calibration: np.ndarray | None) -> None:
        import onnx
        import tensorflow as tf

        images = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype, name="images")
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # Keras asks NumPy for a name that tf2onnx misses.
            warnings.simplefilter("ignore", FutureWarning)
            model.export(
                f"{folder}/model.onnx",
                format="onnx",
                verbose=False,
                input_signature=[images],
                opset_version=_CONVERTED_OPSET,
            )
            written = onnx.load(f"{folder}/model.onnx")
        _rename_output(written.graph, "outputs")
        upgraded = onnx.version_converter.convert_version(written, self.opset)
        onnx.checker.check_model(upgraded, full_check=True)
        onnx.save(upgraded, path)

    def read(self, path: Path, threads: int | None = None) -> Runner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        with _reading(path, "an ONNX model from images to one output"):
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            (source,), (target,) = session.get_inputs(), session.get_outputs()
        return Runner(lambda images: session.run([target.name], {source.name: images})[0], tuple(source.shape[1:]))


_tflite_quantised = partial(TFLite, measure=relative_noise)


EXPORTERS: dict[str, Exporter] = {
    "keras": PlainKeras(file_name="model.keras"),
    "saved_model": SavedModel(file_name="saved_model"),
    "saved_model_frozen": SavedModel(file_name="saved_model_frozen", frozen=True),
    "tflite": TFLite(file_name="model.tflite"),
    "tflite_float16": TFLite(file_name="model_float16.tflite", kind="float16", tolerance=0.02),
    "tflite_dynamic": _tflite_quantised(file_name="model_dynamic.tflite", kind="dynamic", tolerance=0.2),
    "tflite_int8": _tflite_quantised(file_name="model_int8.tflite", kind="int8", tolerance=0.3),
    "tflite_int16x8": _tflite_quantised(file_name="model_int16x8.tflite", kind="int16x8", tolerance=0.1),
    "onnx": ONNX(file_name="model.onnx"),
}


def check_images_fit(images: np.ndarray, model: keras.Model, name: str) -> None:
    allowed = model.input_shape[1:]
    shape = np.shape(images)
    fits = len(shape) == 4 and all(side in (None, got) for side, got in zip(allowed, shape[1:], strict=True))
    if not fits or not len(images):
        raise ValueError(f"{name} has shape {shape}; the model takes (images, *{allowed}), at least one image.")


def in_full_precision(model: keras.Model) -> keras.Model:
    """Returns the model, or a float32 copy of one that computes in half precision, which no two runtimes do alike."""
    return model if {layer.compute_dtype for layer in model.layers} == {"float32"} else folding.in_float32(model)


def _warn_of_calibration(images: np.ndarray, model: keras.Model) -> None:
    constant = int((images.min(axis=(1, 2, 3)) == images.max(axis=(1, 2, 3))).sum())
    if constant:
        warnings.warn(f"{constant} of {len(images)} calibration images are of one colour.", stacklevel=4)
    outputs = model.predict(images, batch_size=BATCH, verbose=0)
    missing = set(range(outputs.shape[-1])) - set(outputs.argmax(-1).ravel().tolist())
    if missing:
        warnings.warn(
            f"The model sees {len(missing)} of its {outputs.shape[-1]} classes in none of the {len(images)} "
            f"calibration images, such as class {min(missing)}: ranges of activations may be missed. Give more images.",
            stacklevel=4,
        )


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a runtime says of a file that it cannot read into one message."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not {kind}, or it is damaged: {error}") from error


def _rename_output(graph, name: str) -> None:
    """Gives the only output of an ONNX graph a name."""
    old, graph.output[0].name = graph.output[0].name, name
    for node in graph.node:
        node.input[:] = [name if value == old else value for value in node.input]
        node.output[:] = [name if value == old else value for value in node.output]
