"""Apple's Core ML."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import keras

from keras_resdense.data.contract import from_metadata
from keras_resdense.exporting import folding
from keras_resdense.exporting.coreml_program import MODEL, read_program
from keras_resdense.exporting.exporter import Exporter, Extras
from keras_resdense.exporting.inference import InferenceModel
from keras_resdense.exporting.pixels import are_pixels, from_pixels, of_pixels, to_pixels
from keras_resdense.exporting.retracing import follow


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoreML(Exporter):
    """Core ML, for iOS 15, macOS 12 and newer: an `.mlpackage` with an image `images` as input.

    With class names it is a classifier, whose outputs are `classLabel` and `classLabel_probs`; otherwise its output is
    `outputs`. It takes RGB or grey pixels 0–255. If the model's image contract normalises them, the file does this
    itself, and its own contract does not. Its metadata hold the contract and the class names as JSON, under the keys
    `image_contract` and `class_names`.

    Core ML itself runs on macOS and iOS only. To compare the file, its operations are therefore computed with NumPy,
    not on Apple hardware. Latencies are those of NumPy.

    Attributes:
        precision: "float16", which Apple's Neural Engine requires, or "float32".
    """

    what = "a Core ML package from an image to one output"
    packages: ClassVar[tuple[str, ...]] = ("coremltools",)
    runtime = "numpy"

    precision: str = "float16"

    def check(self, model: keras.Model, extras: Extras) -> None:
        if self.precision not in ("float16", "float32"):
            raise ValueError(f"precision is {self.precision!r}; it must be 'float16' or 'float32'.")
        shape = model.input_shape[1:]
        if None in shape or shape[-1] not in (1, 3):
            raise ValueError(
                f"Core ML needs images of one size, in RGB or grey; this model takes {shape}. Build it with a fixed "
                "input_shape of 1 or 3 channels and set its weights."
            )
        if extras.contract is None and extras.real and not are_pixels(extras.images):
            raise ValueError(
                "Core ML's images are pixels 0–255, and these images are not: build the model with "
                "include_preprocessing=True, or set its image_contract."
            )

    def target(self, path: Path) -> Path:
        if path.suffix != ".mlpackage":
            raise ValueError(f"{path} must end in .mlpackage, by which Xcode knows it.")
        return path

    def owns(self, path: Path) -> bool:
        return (path / "Manifest.json").is_file() and (path / MODEL).is_file()

    def adapt(self, extras: Extras) -> Extras:
        images = to_pixels(extras.images, extras.contract)
        return dataclasses.replace(extras, images=images, contract=of_pixels(extras.contract))

    def prepare(self, model: keras.Model) -> keras.Model:
        return folding.fold_batch_norm(from_pixels(model, getattr(model, "image_contract", None)))

    def write(self, model: keras.Model, path: Path, extras: Extras) -> None:
        import tensorflow as tf

        with _quiet():
            import coremltools

            signature = tf.TensorSpec((1, *model.input_shape[1:]), "float32", name="images")
            compute = tf.function(partial(follow, model, use=_convolved))
            layouts = {1: coremltools.colorlayout.GRAYSCALE, 3: coremltools.colorlayout.RGB}
            layout = layouts[model.input_shape[-1]]
            names = list(extras.class_names)
            written = coremltools.convert(
                [compute.get_concrete_function(signature)],
                source="tensorflow",
                inputs=[coremltools.ImageType(name="images", shape=tuple(signature.shape), color_layout=layout)],
                classifier_config=coremltools.ClassifierConfig(names) if names else None,
                minimum_deployment_target=coremltools.target.iOS15,
                compute_precision=coremltools.precision(self.precision),
                skip_model_load=True,
            )
            if not names:
                description = written.get_spec()
                coremltools.utils.rename_feature(description, description.description.output[0].name, "outputs")
                written = coremltools.models.MLModel(description, weights_dir=written.weights_dir, skip_model_load=True)
            written.user_defined_metadata.update(extras.metadata())
            # If saving fails, no half-written package may be left at the path.
            with tempfile.TemporaryDirectory() as folder:
                written.save(f"{folder}/model.mlpackage")
                shutil.copytree(f"{folder}/model.mlpackage", path)

    def open(self, path: Path, threads: int | None) -> InferenceModel:
        with _quiet():
            import coremltools  # noqa: F401 — the definitions of the file's messages

            compute, image, outputs, about = read_program(path)
        contract, names = from_metadata(about)
        return InferenceModel(
            compute=compute,
            input_shape=(None, *image),
            output_shape=(None, *outputs),
            most=1,
            image_contract=contract,
            class_names=names,
        )


def _convolved(call: Any, args: tuple, kwargs: dict) -> Any:
    """Calls a layer. Keras compiles convolutions in groups with XLA, which coremltools does not convert."""
    import tensorflow as tf

    layer = call.operation
    if getattr(layer, "groups", 1) == 1:
        return layer(*args, **kwargs)
    made = tf.nn.conv2d(*args, layer.kernel, layer.strides, layer.padding.upper(), dilations=layer.dilation_rate)
    return layer.activation(tf.nn.bias_add(made, layer.bias) if layer.use_bias else made)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides coremltools' progress bars, and its warnings about versions and the runtime that Linux lacks."""
    logger, before = logging.getLogger("coremltools"), logging.getLogger("coremltools").level
    logger.setLevel(logging.ERROR)
    bars, null = sys.stderr, open(os.devnull, "w")
    try:
        with null, contextlib.redirect_stderr(null), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr = bars
        logger.setLevel(before)
