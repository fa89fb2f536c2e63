"""OpenVINO's intermediate representation."""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from keras_resdense.data.contract import FILES, from_files, from_metadata
from keras_resdense.exporting.endpoints import pixels_endpoint, write_endpoints
from keras_resdense.exporting.exporter import Exporter, Extras, holds_only
from keras_resdense.exporting.inference import InferenceModel

#: File of a folder of OpenVINO that describes the network.
IR_FILE = "model.xml"
#: OpenVINO's names of the precisions that it can be asked to compute in.
HINTS = {"float32": "f32", "bfloat16": "bf16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenVINO(Exporter):
    """OpenVINO, for Intel's processors: a folder of `model.xml`, `model.bin`, image contract and class names.

    It has an input `images`, a batch of any size, and an output `outputs`. Weights are float32, but OpenVINO computes
    in bfloat16 on processors that support it, unless `INFERENCE_PRECISION_HINT` is set to f32.
    """

    what = "an OpenVINO model from images to one output"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    runtime = "openvino"

    threads: tuple[int | None, ...] = (1, 2)

    def owns(self, path: Path) -> bool:
        return holds_only(path, (IR_FILE, "model.bin", *FILES))

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            write_endpoints({"serving_default": pixels_endpoint(model, partial(model, training=False))}, Path(folder))
            # `openvino.convert_model` does the same, but also sends telemetry.
            read = openvino.Core().read_model(folder)
            path.mkdir()
            openvino.save_model(read, path / IR_FILE, compress_to_fp16=False)
        for name, text in extras.files().items():
            (path / name).write_text(text, encoding="utf-8")

    def open(self, path: Path, threads: int | None) -> InferenceModel:
        return open_in_openvino(path, threads)


def open_in_openvino(path: Path, threads: int | None = None, precision: str = "float32") -> InferenceModel:
    """Opens a file that OpenVINO reads: its own, a folder of it, an `.onnx` file or a SavedModel.

    Args:
        path: Path of the file or folder.
        threads: Number of threads; None for OpenVINO's default.
        precision: A key of `HINTS`.
    """
    import openvino

    file = path / IR_FILE if (path / IR_FILE).is_file() else path
    core = openvino.Core()
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this processor has no instructions for bfloat16: use precision='float32'")
    network = core.read_model(file)
    (source,), (target,) = network.inputs, network.outputs
    # A file from elsewhere may have been made for batches of one size.
    shape, batch = _shape(source), _shape(source)[0]
    options = {"INFERENCE_PRECISION_HINT": HINTS[precision]} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    compiled = core.compile_model(network, "CPU", options)

    def compute(images: np.ndarray) -> np.ndarray:
        return compiled(images, share_inputs=True)[0]

    if path.suffix == ".onnx":
        about = network.get_rt_info("framework").value if network.has_rt_info("framework") else {}
        contract, names = from_metadata(about)
    else:
        contract, names = from_files(path / "assets" if (path / "assets").is_dir() else file.parent)
    return InferenceModel(
        compute=compute,
        input_shape=(None, *shape[1:]),
        output_shape=(None, *_shape(target)[1:]),
        dtype=source.element_type.to_dtype().name,
        most=batch,
        precision=precision,
        image_contract=contract,
        class_names=names,
    )


def _shape(end) -> tuple[int | None, ...]:
    return tuple(side.get_length() if side.is_static else None for side in end.partial_shape)
