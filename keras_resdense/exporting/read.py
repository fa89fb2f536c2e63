"""Opens a model of any format, for training in Keras or for inference in a runtime."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import keras

from keras_resdense.checks import pick, require_packages
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.inference import InferenceModel
from keras_resdense.exporting.openvino import IR_FILE
from keras_resdense.exporting.runtimes import RUNTIMES, Runtime, candidates, run_model
from keras_resdense.files import check_digests
from keras_resdense.networks.model import load_keras

#: The file that is read from a run's folder.
MODEL_FILE = EXPORTERS["keras"].file_name
#: Formats by their files' suffixes.
_KINDS = {
    ".keras": "keras",
    ".tflite": "tflite",
    ".onnx": "onnx",
    ".mlpackage": "coreml",
    ".xml": "openvino",
}


@overload
def load_model(
    source: str | Path, *, compile: bool = True, custom_objects: Mapping[str, Any] | None = None
) -> keras.Model: ...


@overload
def load_model(
    source: str | Path | keras.Model,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    runtime: str,
    precision: str = "float32",
) -> InferenceModel: ...


def load_model(
    source: str | Path | keras.Model,
    *,
    compile: bool = True,
    custom_objects: Mapping[str, Any] | None = None,
    runtime: str | None = None,
    precision: str = "float32",
) -> keras.Model | InferenceModel:
    """Opens a model, as a Keras model or for inference in the fastest runtime.

    Without `runtime`, a `.keras` file or that of a run's folder becomes a Keras model with this package's layers, its
    image contract and its class names. `keras.saving.load_model` opens the same files with Keras's own layers. They
    compute the same numbers, but without fused batch norms, without moving averages that replicas of a `tf.distribute`
    strategy share, and without the recomputation of `memory_efficient` dense networks. If such a model is saved again
    without this package, the new file keeps Keras's layers.

    With `runtime`, a Keras model or a file of any format becomes an `InferenceModel`: a function from images to
    outputs, with a `predict`. A Keras model or a `.keras` file is converted for the runtime and compared with the
    model, which takes some seconds for a large network; a file of the runtime opens faster.

    | runtime | runs, besides Keras models, `.keras` files and runs' folders |
    |---|---|
    | "openvino" | folders of OpenVINO or their `.xml`, `.onnx`, SavedModels |
    | "onnxruntime" | `.onnx` |
    | "tensorflow" | SavedModels |
    | "litert" | `.tflite` |

    "auto" takes the first of these runtimes that is installed and runs the source, because that is their order of
    speed on processors, and says on standard error which one. With a GPU, it takes TensorFlow first.

    Args:
        source: A run's folder, a `.keras`, `.tflite`, `.onnx` or `.xml` file, a SavedModel, a folder of OpenVINO or,
            with `runtime`, a Keras model.
        compile: Whether to compile the Keras model as it was saved and restore the optimizer's state.
        custom_objects: Further classes and functions, by the names that a `.keras` file uses.
        runtime: "auto" or a key of `RUNTIMES`; None for a Keras model.
        precision: Precision of a runtime for files in float32: "float32", in which all runtimes agree to about 1e-4, or
            "bfloat16", which OpenVINO computes on processors that have it.

    Raises:
        ValueError: If the source does not exist, is damaged, contains code or is not what the runtime runs; or if the
            runtime is unknown or not installed.
        RuntimeError: If a converted model differs from the Keras model by more than the tolerance of its format.
    """
    if runtime is not None:
        return _in_runtime(source, runtime, precision, custom_objects)
    if isinstance(source, keras.Model):
        raise ValueError(f"{source.name!r} is a Keras model already: to run it in another runtime, add runtime='auto'.")
    if precision != "float32":
        raise ValueError(f"precision is {precision!r}, which a runtime computes in: add runtime='auto'.")
    path = _file_of(Path(source))
    kind = _kind_of(path)
    if kind not in (None, "keras"):
        raise ValueError(f"{path} is no Keras model, but can be run: add runtime='auto'.")
    if kind == "keras":
        if not path.exists():
            raise ValueError(f"There is no {path}.")
        check_digests(path)
        source = path
    return load_keras(source, compile=compile, custom_objects=custom_objects)


def load_runner(path: Path) -> InferenceModel:
    """Opens a file of any format in the runtime of its format.

    Args:
        path: Folder of a run, `.keras`, SavedModel, `.tflite`, `.onnx`, `.mlpackage` or folder of OpenVINO.

    Raises:
        ValueError: If the path is none of these, or is damaged.
    """
    path, kind = _located(path)
    return EXPORTERS[kind].read(path)


def _in_runtime(
    source: str | Path | keras.Model, runtime: str, precision: str, custom_objects: Mapping[str, Any] | None
) -> InferenceModel:
    runtime = pick({name: name for name in ("auto", *RUNTIMES)}, runtime, "runtime")
    precisions = {name: name for row in RUNTIMES.values() for name in row.precisions}
    precision = pick(precisions, precision, "precision of a runtime")
    model, path, kind = source, None, "keras"
    if not isinstance(source, keras.Model):
        path, kind = _located(Path(source))
        check_digests(path)
        model = load_keras(path, compile=False, custom_objects=custom_objects) if kind == "keras" else None
    told = str(path) if path else f"The model {model.name!r}"
    if not any(row.runs(kind) for row in RUNTIMES.values()):
        raise ValueError(
            f"{told} runs on Apple's systems only: open the .keras file that it was made from, which all run."
        )

    def open_in(name: str) -> InferenceModel:
        row = RUNTIMES[name]
        opened = row.open(path, kind, precision) if model is None else run_model(model, name, precision)
        return dataclasses.replace(opened, runtime=name, path=path)

    if runtime != "auto":
        _check_runs(RUNTIMES[runtime], told, kind, precision)
        return open_in(runtime)
    able = candidates(kind, precision)
    if not able:
        wanted = [row for row in RUNTIMES.values() if row.runs(kind) and precision in row.precisions]
        ways = " or ".join(f"pip install {row.install}" for row in wanted) or "use precision='float32'"
        raise ValueError(f"No installed runtime runs {told} in {precision}: {ways}.")
    for name in able:
        try:
            opened = open_in(name)
        except (ValueError, RuntimeError) as error:
            if model is None or name == able[-1]:
                raise
            print(f"{told} does not run in {RUNTIMES[name].title}: {error}", file=sys.stderr)
            continue
        break
    print(f"{told} runs in {RUNTIMES[name].title}, the fastest installed runtime for it.", file=sys.stderr)
    return opened


def _check_runs(row: Runtime, told: str, kind: str, precision: str) -> None:
    """Raises a ValueError unless a runtime is installed and runs a kind of file in a precision."""
    if not row.runs(kind):
        able = ", ".join(repr(name) for name, other in RUNTIMES.items() if other.runs(kind))
        raise ValueError(
            f"{row.title} does not run {told}: use the runtime {able} or 'auto', or open the .keras file that it was "
            "made from, which every runtime runs."
        )
    if precision not in row.precisions:
        able = ", ".join(repr(name) for name, other in RUNTIMES.items() if precision in other.precisions)
        raise ValueError(f"{row.title} does not compute in {precision} by request: use the runtime {able} or 'auto'.")
    require_packages(row.title, [row.package], [row.install])


def _file_of(path: Path) -> Path:
    """Returns the file that a run's folder or a path stands for."""
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    return path.parent if path.name == IR_FILE else path


def _kind_of(path: Path) -> str | None:
    """Returns the format of a file or folder; None if it is none that is known."""
    if path.is_dir() and path.suffix not in (".keras", ".mlpackage"):
        return "openvino" if (path / IR_FILE).is_file() else "saved_model"
    return _KINDS.get(path.suffix)


def _located(path: Path) -> tuple[Path, str]:
    """Returns the file that a path stands for, and its format."""
    path = _file_of(path)
    kind = _kind_of(path)
    if not path.exists() or kind is None:
        what = "is not a model" if path.exists() else "does not exist"
        raise ValueError(
            f"{path} {what}: it must be a run's folder, a .keras, a .tflite, an .onnx, an .mlpackage, a SavedModel "
            "or a folder of OpenVINO."
        )
    return path, kind
