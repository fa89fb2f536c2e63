"""Shows the TFLite operations and delegate partitions of each family, ours and those of keras.applications.

    python benchmarks/tflite_graphs.py [--size 96] [--time] [names …]

Prints a line for each graph: converted as built, and exported (`rewrite_for_phones`), in float32 and in int8. "whole"
says whether XNNPACK runs everything from input to output in one partition. With --time, it also prints the median time
of an image on one thread, with all graphs of a family interleaved.
"""

import argparse
import collections
import statistics
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from keras import applications

import keras_resdense
from keras_resdense.exporting.exporter import Extras
from keras_resdense.exporting.folding import rewrite_for_phones
from keras_resdense.exporting.formats import EXPORTERS

FAMILIES = (
    "resnet18 resnet50 resnet50v1 resnet18d resnext50_32x4d seresnet18 resnet50v2 resnet50v2_keras plainnet18 "
    "densenet121 resnet20 preactresnet110 densenet40_12 densenetbc100_12"
).split()
PEERS = {
    "resnet50v1": applications.ResNet50,
    "resnet50v2_keras": applications.ResNet50V2,
    "densenet121": applications.DenseNet121,
}
ROUNDS = 30


def convert(model: keras.Model, format: str = "tflite") -> Interpreter:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        pixels = random.uniform(0, 255, (2, *model.input_shape[1:]))
        EXPORTERS[format].write(model, path, Extras(images=pixels, calibration=pixels))
        interpreter = Interpreter(model_content=path.read_bytes(), num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    interpreter.set_tensor(source["index"], random.integers(0, 100, source["shape"]).astype(source["dtype"]))
    return interpreter


def describe(interpreter: Interpreter) -> str:
    details = interpreter._get_ops_details()
    kinds = collections.Counter(operation["op_name"] for operation in details)
    partitions = [operation for operation in details if operation["op_name"] == "DELEGATE"]
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    reached = [source["index"] in p["inputs"] and target["index"] in p["outputs"] for p in partitions]
    whole = "whole" if reached == [True] else "in parts"
    del kinds["DELEGATE"]
    counts = " ".join(f"{name}:{count}" for name, count in sorted(kinds.items()))
    return f"{len(partitions)} partitions, {whole:8} {counts}"


def milliseconds(interpreters: list[Interpreter]) -> list[float]:
    times = [[] for _ in interpreters]
    for _ in range(ROUNDS):
        for interpreter, mine in zip(interpreters, times, strict=True):
            start = time.perf_counter()
            interpreter.invoke()
            mine.append(1000 * (time.perf_counter() - start))
    return [statistics.median(mine[2:]) for mine in times]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=FAMILIES)
    parser.add_argument("--size", type=int, default=96, help="side of the images, in pixels")
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    shape = (options.size, options.size, 3)
    for name in options.names:
        keras.backend.clear_session()
        model = keras_resdense.create_model(name, input_shape=shape)
        rewritten = rewrite_for_phones(model)
        graphs = {"as built": convert(model), "as exported": convert(rewritten)}
        graphs["as exported, int8"] = convert(rewritten, "tflite_int8")
        if name in PEERS:
            peer = PEERS[name](weights=None, input_shape=shape)
            graphs["keras.applications"] = convert(peer)
            graphs["keras.applications, int8"] = convert(peer, "tflite_int8")
        times = milliseconds(list(graphs.values())) if options.time else [None] * len(graphs)
        for (label, interpreter), median in zip(graphs.items(), times, strict=True):
            timed = f"{median:8.2f} ms  " if median else ""
            print(f"{name:18}{label:26}{timed}{describe(interpreter)}", flush=True)


if __name__ == "__main__":
    main()
