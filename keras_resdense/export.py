"""Exports: an exporter is one row, and every export is read back and compared with its model.

An exporter takes any Keras image model with one input `(batch, height, width, channels)` and one output.
Whatever it is trained in, it is exported in float32 and rewritten for inference, but for plain Keras,
which stays fit to be trained on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_resdense import folding
from keras_resdense.quantisation import dequantise, quantise

#: Single images that latency is the median of, after the warm-up.
TIMED_IMAGES = 10
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
    """

    compute: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int | str | None, ...]
    batch: int = BATCH

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
            model = _in_full_precision(keras.saving.load_model(path, compile=False))
        return Runner(model.predict_on_batch, model.input_shape[1:])


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
        compute = _freeze(model) if self.frozen else partial(model, training=False)
        endpoints = {"serving_default": _pixels_endpoint(model, compute)}
        if model.input_shape[-1] in (1, 3, 4):
            endpoints["serve_images"] = _files_endpoint(model, compute)
        _write_endpoints(endpoints, path)

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
            _check_images(calibration, model, "calibration")
            _warn_of_calibration(calibration, model)

    def prepare(self, model: keras.Model) -> keras.Model:
        return folding.rewrite_for_phones(model)

    def write(self, model: keras.Model, path: Path, calibration: np.ndarray | None) -> None:
        import tensorflow as tf

        # Full integer models take their bytes by quantisation, the others by a cast.
        pixels = "float32" if self.kind == "int8" else self.pixels
        with tempfile.TemporaryDirectory() as folder:
            compute = partial(model, training=False)
            _write_endpoints({"serving_default": _pixels_endpoint(model, compute, self.batch, pixels)}, Path(folder))
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
    _check_images(images, model, "images")
    if labels is not None and np.shape(labels) != np.shape(images)[:1]:
        raise ValueError(f"labels has shape {np.shape(labels)}; there are {len(images)} images, so ({len(images)},).")
    if class_names and len(class_names) != model.output_shape[-1]:
        raise ValueError(f"class_names has {len(class_names)} names; the model tells {model.output_shape[-1]} classes.")
    check_target(path, overwrite)
    exporter.check(model, calibration)
    with staged(path) as temporary:
        images = images.astype(model.inputs[0].dtype)
        expected = _in_full_precision(model).predict(images, batch_size=BATCH, verbose=0).astype("float32")
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


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which takes the place of `path` if all goes well."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-"))
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error}. Choose a path in a folder of yours.") from error
        temporary = Path(folder) / path.name
        yield temporary
        if path.is_dir():
            # A folder is not replaced in one step: the old one goes where it is removed in the end.
            path.rename(Path(folder) / "replaced")
        os.replace(temporary, path)


def check_target(path: Path, overwrite: bool) -> None:
    """Raises a ValueError if there is something at a path that may not be replaced."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another path, or overwrite it (overwrite=True, --overwrite).")


def _find_exporter(format: str | Exporter) -> tuple[str, Exporter]:
    if isinstance(format, Exporter):
        names = (name for name, row in EXPORTERS.items() if row.file_name == format.file_name)
        return next(names, type(format).__name__), format
    if format not in EXPORTERS:
        near = difflib.get_close_matches(str(format), EXPORTERS, n=1)
        hint = f" Closest: {near[0]}." if near else ""
        raise ValueError(f"There is no format {format!r}.{hint} There are {', '.join(EXPORTERS)}.")
    return format, EXPORTERS[format]


def _check_model(model: keras.Model) -> None:
    if not folding.is_graph(model):
        kind = type(model).__name__
        raise ValueError(f"{model.name!r} is a {kind}; only functional and built sequential models can be exported.")
    if [len(tensor.shape) for tensor in model.inputs] != [4] or len(model.outputs) != 1:
        shapes = [tensor.shape for tensor in (*model.inputs, *model.outputs)]
        raise ValueError(
            f"{model.name!r} has inputs and outputs of the shapes {shapes}; "
            "an exporter takes one input, images (batch, height, width, channels), and one output."
        )


def _check_images(images: np.ndarray, model: keras.Model, name: str) -> None:
    allowed = model.input_shape[1:]
    shape = np.shape(images)
    fits = len(shape) == 4 and all(side in (None, got) for side, got in zip(allowed, shape[1:], strict=True))
    if not fits or not len(images):
        raise ValueError(f"{name} has shape {shape}; the model takes (images, *{allowed}), at least one image.")


def _in_full_precision(model: keras.Model) -> keras.Model:
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


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a runtime says of a file that it cannot read into one message."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not {kind}, or it is damaged: {error}") from error


def _freeze(model: keras.Model) -> Callable:
    """Returns a function from images to outputs whose graph holds the weights."""
    import tensorflow as tf

    kinds = model.trainable_variables, model.non_trainable_variables
    weights = [[variable.numpy() for variable in kind] for kind in kinds]

    # Both endpoints call the one graph that a signature allows, and the file has its constants once.
    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)])
    def compute(images):
        return model.stateless_call(*tf.nest.map_structure(tf.constant, weights), images, training=False)[0]

    return compute


def _pixels_endpoint(model: keras.Model, compute: Callable, batch: int | None = None, dtype: str | None = None):
    """Returns a function from images to outputs, and its signature."""
    import tensorflow as tf

    def serve(images):
        return {"outputs": compute(tf.cast(images, model.inputs[0].dtype))}

    spec = tf.TensorSpec((batch, *model.input_shape[1:]), dtype or model.inputs[0].dtype, name="images")
    return serve, [spec]


def _files_endpoint(model: keras.Model, compute: Callable):
    """Returns a function from encoded images to outputs, and its signature."""
    import tensorflow as tf

    _, *size, channels = model.input_shape

    def decode(encoded):
        image = tf.cast(tf.io.decode_image(encoded, channels=channels, expand_animations=False), tf.float32)
        return image if None in size else tf.image.resize(image, size, antialias=True)

    def serve(encoded):
        spec = tf.TensorSpec((*size, channels), tf.float32)
        images = tf.map_fn(decode, encoded, fn_output_signature=spec)
        return {"outputs": compute(tf.cast(images, model.inputs[0].dtype))}

    return serve, [tf.TensorSpec((None,), tf.string, name="encoded")]


def _write_endpoints(endpoints: dict, path: Path) -> None:
    # The variables of the endpoints are found by themselves; a tracked model's are saved a second time.
    archive = keras.export.ExportArchive()
    for name, (serve, signature) in endpoints.items():
        archive.add_endpoint(name, serve, input_signature=signature)
    archive.write_out(path, verbose=False)


def _rename_output(graph, name: str) -> None:
    """Gives the only output of an ONNX graph a name."""
    old, graph.output[0].name = graph.output[0].name, name
    for node in graph.node:
        node.input[:] = [name if value == old else value for value in node.input]
        node.output[:] = [name if value == old else value for value in node.output]
