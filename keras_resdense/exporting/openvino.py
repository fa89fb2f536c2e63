"""OpenVINO's intermediate representation."""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from keras_resdense.data.contract import FILES, from_files
from keras_resdense.exporting.endpoints import pixels_endpoint, write_endpoints
from keras_resdense.exporting.exporter import BATCH, Exporter, Extras, Runner, holds_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenVINO(Exporter):
    """OpenVINO, for Intel's processors: a folder of `model.xml`, `model.bin`, image contract and class names.

    It has an input `images`, a batch of any size, and an output `outputs`. Weights are float32, but OpenVINO computes
    in bfloat16 on processors that support it, unless `INFERENCE_PRECISION_HINT` is set to f32.
    """

    what = "an OpenVINO model from images to one output"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)

    threads: tuple[int | None, ...] = (1, 2)

    def owns(self, path: Path) -> bool:
        return holds_only(path, ("model.xml", "model.bin", *FILES))

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            write_endpoints({"serving_default": pixels_endpoint(model, partial(model, training=False))}, Path(folder))
            # `openvino.convert_model` does the same, but also sends telemetry.
            read = openvino.Core().read_model(folder)
            path.mkdir()
            openvino.save_model(read, path / "model.xml", compress_to_fp16=False)
        for name, text in extras.files().items():
            (path / name).write_text(text, encoding="utf-8")

    def open(self, path: Path, threads: int | None) -> Runner:
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        compiled = openvino.Core().compile_model(path / "model.xml", "CPU", options)
        shape = tuple(side.get_length() if side.is_static else None for side in compiled.input().partial_shape)

        def compute(images: np.ndarray) -> np.ndarray:
            return compiled(images)[compiled.output()]

        return Runner(compute, shape[1:], BATCH, *from_files(path))
