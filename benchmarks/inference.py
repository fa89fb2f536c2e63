"""An image at a time on two threads, in the runtimes of phones: ours against keras.applications' and torchvision's.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/inference.py FOLDER [networks …] [--peers NAME …] [--rounds 5]

Our files are written by the exporters in float32, dynamic and int8, those of keras.applications by TensorFlow's
converter; all run in LiteRT. torchvision's run in ONNX Runtime and OpenVINO, the latter also in bfloat16, its default
where the processor has it. OpenVINO reads our TFLite file, too: its ratio to torchvision's compares the networks, and
LiteRT's ratio to it compares the runtimes. That needs `pip install openvino` beside the package.

In each contest all compute the same network except for random weights: resnet50v1, which strides in the 1×1
convolution, meets keras.applications' ResNet50, and resnet50, which strides in the 3×3, meets torchvision's. A file is
compared with our file of the same kind, or else with our float32 file in LiteRT.
"""

from collections.abc import Sequence

from contest import Case, conditions, main, median, ratio
from contestants import DYNAMIC, INT8, LITERT, OPENVINO
from pages import cell, table

KERAS = ("keras.applications, LiteRT", "keras.applications, LiteRT int8")
TORCH = (OPENVINO, "torchvision, ONNX Runtime", "torchvision, OpenVINO", "torchvision, OpenVINO bfloat16")
PEERS = {
    "resnet18": TORCH,
    "resnet50": TORCH,
    "resnet50v1": KERAS,
    "resnet50v2": (),
    "resnet50v2_keras": KERAS,
    "resnet101": TORCH,
    "resnet101v1": KERAS,
    "densenet121": (*KERAS, *TORCH),
    "densenet201": (*KERAS, *TORCH),
}

CASES = tuple(
    Case(network=network, side=224, batch=1, steps=8, ours=LITERT, peers=(DYNAMIC, INT8, *peers))
    for network, peers in PEERS.items()
)

#: Columns of the table: two contestants, whose speeds are compared.
COLUMNS = {
    "float32, over keras. applications'": (LITERT, KERAS[0]),
    "over ONNX Runtime": (LITERT, TORCH[1]),
    "over OpenVINO": (LITERT, TORCH[2]),
    "ours in OpenVINO, over torchvision's there": (OPENVINO, TORCH[2]),
    "dynamic, over our float32": (DYNAMIC, LITERT),
    "int8, over our float32": (INT8, LITERT),
    "int8, over keras. applications'": (INT8, KERAS[1]),
    "dynamic, over OpenVINO's bfloat16": (DYNAMIC, TORCH[3]),
    "int8, over the same": (INT8, TORCH[3]),
}
FILES = ("tflite", "tflite_dynamic", "tflite_int8")


def tables(contests: Sequence[dict]) -> dict[str, str]:
    rows = [
        (
            one["network"],
            *(cell(ratio([one], *pair)) for pair in COLUMNS.values()),
            ", ".join(f"{median([one], name, 'peak_memory_mb'):.0f}" for name in (LITERT, DYNAMIC, INT8)),
            ", ".join(f"{one['file_mb'][name]:.0f}" for name in FILES),
        )
        for one in contests
    ]
    header = ("network", *COLUMNS, "peak MB: float32, dynamic, int8", "file MB")
    return {"inference": f"{conditions(contests)}\n\n{table(header, rows)}"}


if __name__ == "__main__":
    main(__doc__, __file__, CASES, "predict")
