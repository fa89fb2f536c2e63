"""The builders: a function for each variant, with the arguments of keras.applications."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import keras

from keras_resdense.networks.zoo import VARIANTS, create_model

_signature = functools.cache(partial(inspect.signature, eval_str=True))


class Builder(Protocol):
    """A function that builds one variant, with the arguments of `create_model` except `variant`."""

    __name__: str

    def __call__(
        self,
        include_top: bool = True,
        weights: str | Path | None = None,
        input_tensor: keras.KerasTensor | None = None,
        input_shape: tuple[int | None, int | None, int] | None = None,
        pooling: Literal["avg", "max"] | None = None,
        classes: int | None = None,
        classifier_activation: str | Callable | None = "softmax",
        name: str | None = None,
        layer_prefix: str = "",
        include_preprocessing: bool | str = False,
    ) -> keras.Model: ...


def _builder(name: str) -> Builder:
    """Returns `create_model` for one variant, with a signature and documentation of its own."""
    variant = name.lower()

    def build(*args: Any, **kwargs: Any) -> keras.Model:
        return create_model(variant, *args, **kwargs)

    signature = _signature(create_model)
    _, *parameters = signature.parameters.values()
    classes = {"default": VARIANTS[variant].stem.classes, "annotation": int}
    build.__signature__ = signature.replace(
        parameters=[p.replace(**classes) if p.name == "classes" else p for p in parameters]
    )
    build.__name__ = build.__qualname__ = name
    _, after = inspect.getdoc(create_model).split("    include_top:", 1)
    build.__doc__ = f"Builds {name}, as `create_model({variant!r}, …)` does.\n\nArgs:\n    include_top:{after}"
    return build


ResNet18: Builder = _builder("ResNet18")
ResNet34: Builder = _builder("ResNet34")
ResNet50: Builder = _builder("ResNet50")
ResNet101: Builder = _builder("ResNet101")
ResNet152: Builder = _builder("ResNet152")
ResNet200: Builder = _builder("ResNet200")
ResNeXt50_32x4d: Builder = _builder("ResNeXt50_32x4d")
ResNeXt101_32x8d: Builder = _builder("ResNeXt101_32x8d")
ResNeXt101_64x4d: Builder = _builder("ResNeXt101_64x4d")
WideResNet50_2: Builder = _builder("WideResNet50_2")
WideResNet101_2: Builder = _builder("WideResNet101_2")
ResNet20: Builder = _builder("ResNet20")
ResNet32: Builder = _builder("ResNet32")
ResNet44: Builder = _builder("ResNet44")
ResNet56: Builder = _builder("ResNet56")
ResNet110: Builder = _builder("ResNet110")
ResNet1202: Builder = _builder("ResNet1202")
ResNet50V1: Builder = _builder("ResNet50V1")
ResNet101V1: Builder = _builder("ResNet101V1")
ResNet152V1: Builder = _builder("ResNet152V1")
ResNet18D: Builder = _builder("ResNet18D")
ResNet34D: Builder = _builder("ResNet34D")
ResNet50D: Builder = _builder("ResNet50D")
ResNet101D: Builder = _builder("ResNet101D")
ResNet152D: Builder = _builder("ResNet152D")
ResNet200D: Builder = _builder("ResNet200D")
SEResNet18: Builder = _builder("SEResNet18")
SEResNet34: Builder = _builder("SEResNet34")
SEResNet50: Builder = _builder("SEResNet50")
SEResNet101: Builder = _builder("SEResNet101")
SEResNet152: Builder = _builder("SEResNet152")
PlainNet18: Builder = _builder("PlainNet18")
PlainNet34: Builder = _builder("PlainNet34")
PlainNet20: Builder = _builder("PlainNet20")
PlainNet32: Builder = _builder("PlainNet32")
PlainNet44: Builder = _builder("PlainNet44")
PlainNet56: Builder = _builder("PlainNet56")
ResNet18V2: Builder = _builder("ResNet18V2")
ResNet34V2: Builder = _builder("ResNet34V2")
ResNet50V2: Builder = _builder("ResNet50V2")
ResNet101V2: Builder = _builder("ResNet101V2")
ResNet152V2: Builder = _builder("ResNet152V2")
ResNet200V2: Builder = _builder("ResNet200V2")
ResNet50V2_Keras: Builder = _builder("ResNet50V2_Keras")
ResNet101V2_Keras: Builder = _builder("ResNet101V2_Keras")
ResNet152V2_Keras: Builder = _builder("ResNet152V2_Keras")
PreActResNet110: Builder = _builder("PreActResNet110")
PreActResNet164: Builder = _builder("PreActResNet164")
PreActResNet1001: Builder = _builder("PreActResNet1001")
DenseNet121: Builder = _builder("DenseNet121")
DenseNet161: Builder = _builder("DenseNet161")
DenseNet169: Builder = _builder("DenseNet169")
DenseNet201: Builder = _builder("DenseNet201")
DenseNet264: Builder = _builder("DenseNet264")
DenseNet40_12: Builder = _builder("DenseNet40_12")
DenseNet100_12: Builder = _builder("DenseNet100_12")
DenseNet100_24: Builder = _builder("DenseNet100_24")
DenseNetBC40_12: Builder = _builder("DenseNetBC40_12")
DenseNetBC100_12: Builder = _builder("DenseNetBC100_12")
DenseNetBC250_24: Builder = _builder("DenseNetBC250_24")
DenseNetBC190_40: Builder = _builder("DenseNetBC190_40")
