"""Inference of our networks from Python against that of Keras's and PyTorch's libraries, interleaved, on two threads.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/predict_speed.py FOLDER [networks …] [--peers NAME …] [--rounds 5]

As in `training_speed.py`, but for what is timed: calls with one batch, of an image or of 32. "ours",
"keras.applications" and "KerasHub" are `model.predict`; "folded" is that of `fold_batch_norm(model)`; SavedModel and
LiteRT are files, ours by the exporters, theirs by `model.export` and TensorFlow's converter; PyTorch's run in inference
mode. Their files are compared with ours, all else with our `model.predict`. The limit is the matrix-product rate over
2 FLOP for each multiply-add. Results are FOLDER/predict.json and FOLDER/predict.png.
"""

from contest import Case, main

FORMS = ("ours, folded", "ours, SavedModel", "ours, frozen SavedModel", "ours, LiteRT")
KERAS = ("keras.applications", "keras.applications, SavedModel", "keras.applications, LiteRT")
TORCHVISION = ("torchvision", "torchvision, channels last", "torchvision, compiled")
PEERS = {
    "resnet50": TORCHVISION,
    "resnet50v1": KERAS,
    "resnet18": ("KerasHub", *TORCHVISION),
    "densenet121": (*KERAS, *TORCHVISION),
}
STEPS = {1: 40, 32: 4}

CASES = tuple(
    Case(network=network, side=224, batch=batch, steps=steps, peers=(*FORMS, *peers))
    for network, peers in PEERS.items()
    for batch, steps in STEPS.items()
)

if __name__ == "__main__":
    main(__doc__, CASES, "predict")
