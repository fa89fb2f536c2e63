"""Compares inference from Python with Keras's and PyTorch's libraries, interleaved, on two threads.

    python benchmarks/make_peers.py FOLDER
    python benchmarks/predict_speed.py FOLDER [networks …] [--peers NAME …] [--rounds 5]

This works like `training_speed.py`, but times calls with a batch of 1 or 32 images. "ours", "keras.applications" and
"KerasHub" are `model.predict`. "folded" is `predict` of `fold_batch_norm(model)`. SavedModel and LiteRT are files: ours
come from the exporters, theirs from `model.export` and TensorFlow's converter. The fastest runtime is the one that
`load_model(file, runtime="auto")` takes, here OpenVINO, which runs torchvision's networks beside it. PyTorch runs in
inference mode. Peers' files are compared with our files, everything else with our `model.predict`. The limit is the
matrix-product rate divided by 2 FLOP per multiply-add.
"""

import statistics
from collections.abc import Sequence

from contest import Case, conditions, draw, main, ratio, speeds
from contestants import FASTEST, FASTEST_BFLOAT16, OURS
from pages import cell, table

__all__ = ["draw", "tables"]

FORMS = ("ours, folded", "ours, SavedModel", "ours, frozen SavedModel", "ours, LiteRT")
KERAS = ("keras.applications", "keras.applications, SavedModel", "keras.applications, LiteRT")
TORCHVISION = ("torchvision", "torchvision, channels last", "torchvision, compiled")
RUNTIMES = (FASTEST, FASTEST_BFLOAT16)
OPENVINO = ("torchvision, OpenVINO", "torchvision, OpenVINO bfloat16")
PEERS = {
    "resnet50": (*TORCHVISION, *RUNTIMES, *OPENVINO),
    "resnet50v1": (*KERAS, FASTEST),
    "resnet18": ("KerasHub", *TORCHVISION, *RUNTIMES, *OPENVINO),
    "densenet121": (*KERAS, *TORCHVISION, *RUNTIMES, *OPENVINO),
}
STEPS = {1: 40, 32: 4}

CASES = tuple(
    Case(network=network, side=224, batch=batch, steps=steps, peers=(*FORMS, *peers))
    for network, peers in PEERS.items()
    for batch, steps in STEPS.items()
)

#: Rows of the table: networks by title.
ROWS = {
    "ResNet-50": ("resnet50v1", "resnet50"),
    "DenseNet-121": ("densenet121",),
    "ResNet-18": ("resnet18",),
}
#: Columns of the table: our form and theirs.
COLUMNS = {
    "`predict`": (OURS, "keras.applications", "KerasHub"),
    "folded": ("ours, folded", "keras.applications", "KerasHub"),
    "SavedModel": ("ours, SavedModel", "keras.applications, SavedModel"),
    "frozen": ("ours, frozen SavedModel", "keras.applications, SavedModel"),
    "LiteRT": ("ours, LiteRT", "keras.applications, LiteRT"),
    "fastest runtime": (FASTEST, "keras.applications", "KerasHub"),
    "… over OpenVINO": (FASTEST, OPENVINO[0]),
    "… in bfloat16": (FASTEST_BFLOAT16, OPENVINO[1]),
}
#: Our forms in TensorFlow.
OURS_IN_TENSORFLOW = (OURS, *FORMS[:-1])
GOALS = dict.fromkeys(("`predict`", "folded", "SavedModel", "frozen"), 1.3) | {
    "fastest runtime": 1.5,
    "… over OpenVINO": 0.95,
    "… in bfloat16": 0.95,
}


def tables(contests: Sequence[dict]) -> dict[str, str]:
    rows, short = [], []
    for title, networks in ROWS.items():
        for batch in STEPS:
            met = [one for one in contests if one["network"] in networks and one["batch"] == batch]
            speed = statistics.median(speed for one in met for speed in speeds(one, OURS))
            ratios = [
                next((found for peer in peers if (found := ratio(met, ours, peer))), None)
                for ours, *peers in COLUMNS.values()
            ]
            figures = [cell(found, goal=GOALS.get(form, 0)) for form, found in zip(COLUMNS, ratios, strict=True)]
            # The fastest of ours over the fastest of theirs.
            torch = [[ratio(met, ours, peer) or 0 for ours in OURS_IN_TENSORFLOW] for peer in TORCHVISION]
            fastest = min((max(forms) for forms in torch if any(forms)), default=None)
            rows.append((f"{title}, {batch}", f"{speed:.1f}", *figures, cell(fastest)))
            if batch == 1 and any("keras.applications" in one["peers"] for one in met):
                short.append(f"{ratios[0]:.2f} times as fast in {title}")
    header = ("network, batch", "`predict`, images/s", *COLUMNS, "PyTorch")
    return {
        "predict_speed": f"{conditions(contests)}\n\n{table(header, rows)}",
        "predict_in_short": f"`model.predict` on one image is {' and '.join(short)} as keras.applications'.",
    }


if __name__ == "__main__":
    main(__doc__, __file__, CASES, "predict")
