"""Compares inference from Python with Keras's and PyTorch's libraries, interleaved, on two threads.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/predict_speed.py FOLDER [networks …] [--peers NAME …] [--rounds 5]

This works like `training_speed.py`, but times calls with a batch of 1 or 32 images. "ours", "keras.applications" and
"KerasHub" are `model.predict`. "folded" is `predict` of `fold_batch_norm(model)`. SavedModel and LiteRT are files: ours
come from the exporters, theirs from `model.export` and TensorFlow's converter. PyTorch runs in inference mode. Peers'
files are compared with our files, everything else with our `model.predict`. The limit is the matrix-product rate
divided by 2 FLOP per multiply-add. Writes FOLDER/predict.json and FOLDER/predict.png.
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
