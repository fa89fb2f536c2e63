"""The formats of exports, a row each."""

from __future__ import annotations

from functools import partial

from keras_resdense.exporting.coreml import CoreML
from keras_resdense.exporting.exporter import Exporter, relative_noise
from keras_resdense.exporting.keras_file import PlainKeras
from keras_resdense.exporting.onnx import ONNX
from keras_resdense.exporting.openvino import OpenVINO
from keras_resdense.exporting.saved_model import SavedModel
from keras_resdense.exporting.tflite import TFLite
from keras_resdense.exporting.trainable import TrainableTFLite

_tflite_quantised = partial(TFLite, measure=relative_noise)

EXPORTERS: dict[str, Exporter] = {
    "keras": PlainKeras(file_name="model.keras"),
    "saved_model": SavedModel(file_name="saved_model"),
    "saved_model_frozen": SavedModel(file_name="saved_model_frozen", frozen=True),
    "tflite": TFLite(file_name="model.tflite"),
    "tflite_float16": TFLite(file_name="model_float16.tflite", kind="float16", tolerance=0.02),
    "tflite_dynamic": _tflite_quantised(file_name="model_dynamic.tflite", kind="dynamic", tolerance=0.2),
    "tflite_int8": _tflite_quantised(file_name="model_int8.tflite", kind="int8", pixels="uint8", tolerance=0.3),
    "tflite_int16x8": _tflite_quantised(file_name="model_int16x8.tflite", kind="int16x8", tolerance=0.1),
    "tflite_trainable": TrainableTFLite(file_name="model_trainable.tflite"),
    "onnx": ONNX(file_name="model.onnx"),
    "openvino": OpenVINO(file_name="openvino_model"),
    "coreml": CoreML(file_name="model.mlpackage", tolerance=0.02),
}
