"""ONNX."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from pathlib import Path
from typing import ClassVar

import keras

from keras_resdense.data.contract import from_metadata
from keras_resdense.exporting.exporter import Exporter, Extras
from keras_resdense.exporting.inference import InferenceModel

#: Version of the operators, which ONNX Runtime supports since 1.14 (2023).
ONNX_OPSET = 18
#: The oldest and the newest opset that tf2onnx writes. Files are converted from the latter to newer ones.
_OLDEST_OPSET, _CONVERTED_OPSET = 13, 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class ONNX(Exporter):
    """ONNX, for ONNX Runtime and others: an input `images`, a batch of any size, and an output `outputs`.

    The file's metadata hold the image contract and the class names as JSON, under the keys
    `image_contract` and `class_names`.

    Attributes:
        opset: Version of the operators.
    """

    what = "an ONNX model from images to one output"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "tf2onnx")
    runtime = "onnxruntime"

    threads: tuple[int | None, ...] = (1, 2)
    opset: int = ONNX_OPSET

    def check(self, model: keras.Model, extras: Extras) -> None:
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if not _OLDEST_OPSET <= self.opset <= newest:
            raise ValueError(f"opset is {self.opset}; it must be from {_OLDEST_OPSET} to {newest}.")

    def owns(self, path: Path) -> bool:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            return path.is_file() and bool(onnx.load(path, load_external_data=False).graph.node)
        except DecodeError:
            return False

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
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
                opset_version=min(self.opset, _CONVERTED_OPSET),
            )
            written = onnx.load(f"{folder}/model.onnx")
        if self.opset > _CONVERTED_OPSET:
            written = onnx.version_converter.convert_version(written, self.opset)
        _name_ends(written.graph)
        onnx.helper.set_model_props(written, extras.metadata())
        onnx.checker.check_model(written, full_check=True)
        onnx.save(written, path)

    def open(self, path: Path, threads: int | None) -> InferenceModel:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        contract, names = from_metadata(session.get_modelmeta().custom_metadata_map)
        return InferenceModel(
            compute=lambda images: session.run([target.name], {source.name: images})[0],
            input_shape=_shape(source),
            output_shape=_shape(target),
            # "tensor(float)" and "tensor(uint8)".
            dtype={"float": "float32", "double": "float64"}.get(source.type[7:-1], source.type[7:-1]),
            image_contract=contract,
            class_names=names,
        )


def _shape(end) -> tuple[int | None, ...]:
    """Returns the shape of an input or output, whose variable sides have names or none."""
    return tuple(side if isinstance(side, int) else None for side in end.shape)


def _name_ends(graph) -> None:
    """Names the only output of a graph `outputs`, and the first axis of input and output `batch`."""
    old, graph.output[0].name = graph.output[0].name, "outputs"
    for node in graph.node:
        node.input[:] = ["outputs" if value == old else value for value in node.input]
        node.output[:] = ["outputs" if value == old else value for value in node.output]
    for end in (graph.input[0], graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_param = "batch"
