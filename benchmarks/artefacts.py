"""Writes networks as files, and opens these with their runtimes.

The functions `write_…` write a file for a job. The others open a file for a batch of images
`(batch, height, width, 3)` and return a function that computes this batch.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import networks
from networks import Job

#: Number of threads of every runtime.
THREADS = 2
#: Number of calibration images for 8-bit files. Few are enough, because accuracy is not measured.
CALIBRATION_IMAGES = 2

Run = Callable[[], object]


def calibration(job: Job):
    import numpy as np

    return np.random.default_rng(0).uniform(0, 255, (CALIBRATION_IMAGES, *job.shape)).astype("float32")


def with_statistics(model, images):
    """Returns a network with random weights whose batch norms have measured statistics on images.

    Without them, values grow from layer to layer until 8 bits cannot hold them.
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)
    return model


def write_ours(job: Job, path: Path, kind: str, **changes: object) -> None:
    """Writes our network by an exporter, some of whose fields are changed."""
    from keras_resdense.exporting.exporter import Extras
    from keras_resdense.exporting.formats import EXPORTERS

    images = calibration(job)
    exporter = dataclasses.replace(EXPORTERS[kind], **changes)
    model = exporter.prepare(with_statistics(networks.ours(job), images))
    exporter.write(model, path, Extras(images=images, calibration=images))


def write_their_saved_model(job: Job, path: Path) -> None:
    networks.keras_applications(job).export(path, verbose=False)


def write_their_tflite(job: Job, path: Path, int8: bool = False) -> None:
    import tensorflow as tf

    images = calibration(job)
    converter = tf.lite.TFLiteConverter.from_keras_model(with_statistics(networks.keras_applications(job), images))
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    path.write_bytes(converter.convert())


def write_onnx(job: Job, path: Path) -> None:
    import torch

    images = torch.zeros(job.batch, 3, job.side, job.side)
    torch.onnx.export(networks.torchvision(job).eval(), (images,), path, dynamo=True, external_data=False)


def saved_model(path: Path, images) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    (name,) = loaded.signatures["serving_default"].structured_input_signature[1]

    def run():
        # A signature alone does not keep its variables alive.
        outputs = loaded.signatures["serving_default"](**{name: tf.constant(images)})
        return [output.numpy() for output in outputs.values()]

    return run


def litert(path: Path, images) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=THREADS)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], images.shape)
    interpreter.allocate_tensors()
    images = images.astype(source["dtype"])

    def run():
        interpreter.set_tensor(source["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run


def fastest_runtime(path: Path, images, precision: str = "float32") -> Run:
    """Opens our `.keras` file by the package's door to all runtimes."""
    import keras_resdense

    model = keras_resdense.load_model(path, runtime="auto", precision=precision)
    return lambda: model(images)


def onnx_runtime(path: Path, images) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: images.transpose(0, 3, 1, 2).copy()}
    return lambda: session.run(None, feeds)


def openvino(path: Path, images, **options: str) -> Run:
    """Opens a file with OpenVINO's defaults, which means bfloat16 if the processor supports it."""
    from openvino import Core, Tensor

    options |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(THREADS)}
    network = Core().compile_model(path, "CPU", options)
    request = network.create_infer_request()
    if path.suffix == ".onnx":
        images = images.transpose(0, 3, 1, 2).copy()
    request.set_input_tensor(Tensor(images))
    return request.infer
