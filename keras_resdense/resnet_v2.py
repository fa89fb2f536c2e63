"""The counterpart of `keras.applications.resnet_v2`'s `preprocess_input` and `decode_predictions`."""

from __future__ import annotations

from typing import Any, Literal

from keras_resdense.pretrained import preprocessing
from keras_resdense.pretrained.preprocessing import decode_predictions as decode_predictions


def preprocess_input(images: Any, data_format: Literal["channels_last", "channels_first"] | None = None) -> Any:
    """Turns pixels into the input of `keras.applications.resnet_v2`.

    This is `keras_resdense.preprocess_input` with the mode "tf", for `weights="keras"` of ResNet50V2_Keras,
    ResNet101V2_Keras and ResNet152V2_Keras: values from −1 to 1. For any other set of weights, use
    `keras_resdense.transform(model)`.
    """
    return preprocessing.preprocess_input(images, "tf", data_format)
