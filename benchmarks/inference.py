"""An image at a time on two threads, in the runtimes of phones: ours against keras.applications' and torchvision's.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/inference.py FOLDER [networks …] [--peers NAME …] [--rounds 5]

Our files are written by the exporters in float32, dynamic and int8, those of keras.applications by TensorFlow's
converter; all run in LiteRT. torchvision's run in ONNX Runtime and OpenVINO, the latter also in bfloat16, its default
where the processor has it. OpenVINO reads our TFLite file, too: its ratio to torchvision's compares the networks, and
LiteRT's ratio to it compares the runtimes. That needs `pip install openvino` beside the package.

In each contest all compute the same network except for random weights: resnet50v1, which strides in the 1×1
convolution, meets keras.applications' ResNet50, and resnet50, which strides in the 3×3, meets torchvision's. A file is
compared with our file of the same kind, or else with our float32 file in LiteRT. Results are FOLDER/inference.json and
FOLDER/inference.png.
"""

from contest import Case, main
from contestants import DYNAMIC, INT8, LITERT, OPENVINO

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

if __name__ == "__main__":
    main(__doc__, CASES, "predict", results="inference")
