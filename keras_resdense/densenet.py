"""What `keras.applications.densenet` has beside its networks: `preprocess_input` and `decode_predictions`."""

from __future__ import annotations

from typing import Any, Literal

from keras_resdense.pretrained import preprocessing
from keras_resdense.pretrained.preprocessing import decode_predictions as decode_predictions


def preprocess_input(images: Any, data_format: Literal["channels_last", "channels_first"] | None = None) -> Any:
    """Turns pixels into the input of `keras.applications.densenet`: less ImageNet's mean, over its deviation.

    This is `keras_resdense.preprocess_input` with the mode "torch". It is for `weights="keras"` of
    DenseNet121, DenseNet169 and DenseNet201. Any other set, such as one of timm, was trained on
    images that were prepared differently: `keras_resdense.transform(model)` prepares them, and resizes them, too.

    Args:
        images: As `keras_resdense.preprocess_input` takes them.
        data_format: Likewise.

    Returns:
        Of the shape of `images`, float32: an array for an array, a tensor for a tensor.

    Raises:
        ValueError: If there is no such format, or the channels are not three.
    """
    return preprocessing.preprocess_input(images, "torch", data_format)
