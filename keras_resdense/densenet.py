"""The counterpart of `keras.applications.densenet`'s `preprocess_input` and `decode_predictions`."""

from __future__ import annotations

from typing import Any, Literal

from keras_resdense.pretrained import preprocessing
from keras_resdense.pretrained.preprocessing import decode_predictions as decode_predictions


def preprocess_input(images: Any, data_format: Literal["channels_last", "channels_first"] | None = None) -> Any:
    """Turns pixels into the input of `keras.applications.densenet`.

    This is `keras_resdense.preprocess_input` with the mode "torch", for `weights="keras"` of DenseNet121,
    DenseNet169 and DenseNet201: ImageNet's mean is subtracted, then the result is divided by its standard
    deviation. For any other set of weights, use `keras_resdense.transform(model)`.
    """
    return preprocessing.preprocess_input(images, "torch", data_format)
