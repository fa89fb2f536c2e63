"""Requests that TensorFlow Serving answers when it loads a model, so that the first client does not wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

#: Path in a SavedModel where TensorFlow Serving finds the requests.
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"


def write_requests(path: Path, requests: Mapping[str, Mapping[str, np.ndarray | Sequence[bytes]]]) -> None:
    """Writes warm-up requests into a SavedModel.

    Args:
        path: Path of the SavedModel.
        requests: Inputs by name for each signature.
    """
    import tensorflow as tf

    file = path / WARM_UP_FILE
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for signature, inputs in requests.items():
            writer.write(_prediction_log(signature, inputs))


def _prediction_log(signature: str, inputs: Mapping[str, np.ndarray | Sequence[bytes]]) -> bytes:
    """Returns a `PredictionLog` of `tensorflow_serving/apis`, a package that only clients install."""
    import tensorflow as tf

    model_spec = _message((3, signature.encode()))
    tensors = {name: tf.make_tensor_proto(value).SerializeToString() for name, value in inputs.items()}
    # A map is a repeated message of key and value.
    maps = [(2, _message((1, name.encode()), (2, tensor))) for name, tensor in tensors.items()]
    predict_request = _message((1, model_spec), *maps)
    predict_log = _message((1, predict_request))
    return _message((6, predict_log))


def _message(*fields: tuple[int, bytes]) -> bytes:
    """Encodes a protocol buffer with fields of strings, bytes or messages, by number."""
    return b"".join(_varint(number << 3 | 2) + _varint(len(value)) + value for number, value in fields)


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)
