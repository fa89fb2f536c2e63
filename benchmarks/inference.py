"""An image at a time on two threads: our networks against keras.applications' and torchvision's.

    python benchmarks/make_torch_onnx.py FOLDER    # where torch, torchvision, onnx and onnxscript are installed
    python benchmarks/inference.py FOLDER [--rounds 40] [--json FILE] [names …]

Ours as the exporters write them, in LiteRT as float32, dynamic and int8; keras.applications' as TensorFlow's converter
makes them by itself, likewise; torchvision's in ONNX Runtime and OpenVINO, in float32, and in the bfloat16 that
OpenVINO takes by itself where the processor has it. OpenVINO reads our TFLite file, too: what then differs from
torchvision's is the network, and what differs from LiteRT is the runtime.

All of one contest compute the same network but for random weights: resnet50v1, with the stride in the 1×1
convolution, meets keras.applications' ResNet50, and resnet50, with the stride in the 3×3, meets torchvision's.

Each has a process of its own; one after the other gives an image, round by round, after one that is not timed.
Ratios are medians, over the rounds, of our time over theirs. Memory is the peak of the process, with Python and
the runtime. Needs openvino and onnxruntime besides the package, and Linux, for the memory.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SIDE, THREADS = 224, 2
#: Seconds that threads of the one before get to stop spinning.
PAUSE = 0.03
#: Enough to get ranges; accuracy is not measured here.
CALIBRATION_IMAGES = 2
FLOAT, DYNAMIC, INT8 = (f"ours, LiteRT {kind}" for kind in ("float32", "dynamic", "int8"))
PACKAGES = ("keras", "tensorflow", "ai-edge-litert", "onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True)
class Contest:
    """A network of ours and those that compute the same: a builder of keras.applications, a name of torchvision."""

    ours: str
    keras: str = ""
    torch: str = ""


CONTESTS = (
    Contest("resnet18", torch="resnet18"),
    Contest("resnet50", torch="resnet50"),
    Contest("resnet50v1", keras="ResNet50"),
    Contest("resnet50v2"),
    Contest("resnet50v2_keras", keras="ResNet50V2"),
    Contest("resnet101", torch="resnet101"),
    Contest("resnet101v1", keras="ResNet101"),
    Contest("densenet121", keras="DenseNet121", torch="densenet121"),
    Contest("densenet201", keras="DenseNet201", torch="densenet201"),
)


def litert(path: str) -> Callable[[], object]:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=THREADS)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    pixels = np.random.default_rng(0).integers(0, 100, source["shape"])
    interpreter.set_tensor(source["index"], pixels.astype(source["dtype"]))
    return interpreter.invoke


def onnx_runtime(path: str) -> Callable[[], object]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    feeds = {source.name: np.random.default_rng(0).random(source.shape, "float32")}
    return lambda: session.run(None, feeds)


def openvino_float32(path: str) -> Callable[[], object]:
    return openvino(path, {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_default(path: str) -> Callable[[], object]:
    return openvino(path, {})


def openvino(path: str, options: dict[str, str]) -> Callable[[], object]:
    import numpy as np
    import openvino

    options |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(THREADS)}
    network = openvino.compile_model(path, "CPU", options)
    request = network.create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.random.default_rng(0).random(network.input(0).shape, "float32")))
    return request.infer


#: How one contestant computes: a function that takes the path of a file and returns one that runs it once.
RUNTIMES = {run.__name__: run for run in (litert, onnx_runtime, openvino_float32, openvino_default)}


def work(runtime: str, path: str) -> None:
    """Runs a file twice for each line of the input; prints the milliseconds of the second, in the end the memory."""
    run = RUNTIMES[runtime](path)
    for _ in sys.stdin:
        run()
        start = time.perf_counter()
        run()
        print(1000 * (time.perf_counter() - start), flush=True)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1000)


def contestants(contest: Contest, folder: Path) -> dict[str, tuple[str, Path]]:
    """Returns runtime and file of each, ours first; writes what is missing."""
    found = {name: ("litert", ours(contest.ours, name.split()[-1], folder)) for name in (FLOAT, DYNAMIC, INT8)}
    if contest.keras:
        for kind in ("float32", "int8"):
            found[f"keras.applications, LiteRT {kind}"] = "litert", theirs(contest.keras, kind, folder)
    if contest.torch:
        found["ours, OpenVINO float32"] = "openvino_float32", found[FLOAT][1]
        path = folder / f"torchvision_{contest.torch}.onnx"
        found["torchvision, ONNX Runtime"] = "onnx_runtime", path
        found["torchvision, OpenVINO float32"] = "openvino_float32", path
        found["torchvision, OpenVINO by default"] = "openvino_default", path
    return found


def ours(variant: str, kind: str, folder: Path) -> Path:
    path = folder / f"{variant}_{kind}.tflite"
    if not path.exists():
        import keras_resdense
        from keras_resdense.exporting.exporter import Extras
        from keras_resdense.exporting.formats import EXPORTERS

        exporter = EXPORTERS["tflite" if kind == "float32" else f"tflite_{kind}"]
        if kind == "int8":
            # As its peers.
            exporter = dataclasses.replace(exporter, pixels="int8")
        model = exporter.prepare(with_statistics(keras_resdense.create_model(variant)))
        exporter.write(model, path, Extras(images=images(), calibration=images()))
    return path


def theirs(builder: str, kind: str, folder: Path) -> Path:
    path = folder / f"keras_applications_{builder}_{kind}.tflite"
    if not path.exists():
        import keras
        import tensorflow as tf

        model = with_statistics(getattr(keras.applications, builder)(weights=None))
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if kind == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image[None]] for image in images())
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        path.write_bytes(converter.convert())
    return path


def with_statistics(model):
    """Returns a network of random weights whose batch norms know their inputs, as a trained one's do.

    Otherwise values grow from layer to layer until, in the deepest, no 8 bits hold them.
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images(), training=True)
    return model


def images():
    import numpy as np

    return np.random.default_rng(0).uniform(0, 255, (CALIBRATION_IMAGES, SIDE, SIDE, 3)).astype("float32")


def compete(runners: dict[str, tuple[str, Path]], rounds: int) -> dict[str, dict]:
    """Returns milliseconds of each round, peak memory and size of the file, in MB, of each contestant."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--work", runtime, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for name, (runtime, path) in runners.items()
    }  # fmt: skip

    def turn(process: subprocess.Popen) -> float:
        time.sleep(PAUSE)
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    for process in processes.values():
        turn(process)
    times = [[turn(process) for process in processes.values()] for _ in range(rounds)]
    return {
        name: {
            "milliseconds": [row[place] for row in times],
            "peak_memory_mb": float(process.communicate()[0]),
            "file_mb": runners[name][1].stat().st_size / 1e6,
        }
        for place, (name, process) in enumerate(processes.items())
    }


def ratio(name: str, measured: dict[str, dict]) -> float | None:
    """Returns our time over that of a contestant, like with like; of our 8-bit files over our float32."""
    if name == FLOAT:
        return None
    if name in (DYNAMIC, INT8):
        mine, other = name, FLOAT
    else:
        mine, other = INT8 if name.endswith("int8") else FLOAT, name
    rounds = zip(measured[mine]["milliseconds"], measured[other]["milliseconds"], strict=True)
    return statistics.median(a / b for a, b in rounds)


def line(name: str, row: dict) -> str:
    low, *_, high = statistics.quantiles(row["milliseconds"], n=10)
    quotient = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return (
        f"| {name} | {statistics.median(row['milliseconds']):.1f} | {low:.1f}–{high:.1f} | {quotient} |"
        f" {row['peak_memory_mb']:.0f} | {row['file_mb']:.1f} |"
    )


def machine() -> dict:
    from keras_resdense.insight import stopwatch

    return stopwatch.machine() | {name: importlib.metadata.version(name) for name in PACKAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the networks' files are, or are made")
    parser.add_argument("names", nargs="*", help="of our networks; default all")
    parser.add_argument("--rounds", type=int, default=40, help="default %(default)s")
    parser.add_argument("--json", type=Path, help="file for all times")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    contests = {row.ours: row for row in CONTESTS if row.ours in options.names or not options.names}
    runners = {name: contestants(row, options.folder) for name, row in contests.items()}
    report = {"machine": machine(), "threads": THREADS, "load_before": os.getloadavg()[0], "contests": {}}
    print(json.dumps({key: value for key, value in report.items() if value}, indent=2))
    for name, files in runners.items():
        measured = compete(files, options.rounds)
        report["contests"][name] = measured = {
            key: row | {"ratio": ratio(key, measured)} for key, row in measured.items()
        }
        print(f"\n{name}\n\n| | ms | 10–90 % | ratio | peak MB | file MB |\n|---|---:|---:|---:|---:|---:|")
        print("\n".join(line(key, row) for key, row in measured.items()), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        main()
