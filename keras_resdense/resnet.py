"""The counterpart of `keras.applications.resnet`'s `preprocess_input` and `decode_predictions`."""

from __future__ import annotations

from typing import Any, Literal

from keras_resdense.pretrained import preprocessing
from keras_resdense.pretrained.preprocessing import decode_predictions as decode_predictions


def preprocess_input(images: Any, data_format: Literal["channels_last", "channels_first"] | None = None) -> Any:
    """Turns pixels into the input of `keras.applications.resnet`.

    This is `keras_resdense.preprocess_input` with the mode "caffe", for `weights="keras"` of ResNet50V1,
    ResNet101V1 and ResNet152V1: the channels become blue, green, red, and ImageNet's mean is subtracted. For any
    other set of weights, use `keras_resdense.transform(model)`.
    """
    return preprocessing.preprocess_input(images, "caffe", data_format)
