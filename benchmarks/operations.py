"""Where the time of a training step goes: TensorFlow's profile of it, by kind of operation.

    python benchmarks/operations.py [networks …] [--side 32] [--batch 64] [--forms plain shared] [--steps 5]

The forms are those of `dense_blocks.py`: "plain" is Keras's own layers, "shared" what the package does. Each figure is
milliseconds a step, summed over TensorFlow's threads, of which two work at once on two cores.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from dense_blocks import FORMS, trained
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from keras_resdense.insight import stopwatch

#: An operation in a trace: its name in the graph and its kind, maybe of oneDNN.
OPERATION = re.compile(r"[^:]+:(?:_MklNative|_Mkl)?(?P<kind>[A-Z]\w*)")


def times(folder: Path) -> collections.Counter[str]:
    """Returns the milliseconds that each kind of operation took in a trace."""
    (path,) = folder.rglob("*.xplane.pb")
    found = collections.Counter()
    for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
        for event in (event for line in plane.lines for event in line.events):
            if operation := OPERATION.fullmatch(plane.event_metadata[event.metadata_id].name):
                found[operation["kind"]] += event.duration_ps / 1e9
    return found


def profile(network: str, form: str, images: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, float]:
    """Returns the milliseconds that each kind of operation takes in a step."""
    model = trained(network, form, images, labels)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            stopwatch.fit_seconds(model, images, labels, steps - stopwatch.WARM_UP)
        return {kind: time / steps for kind, time in times(Path(folder)).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet20", "densenetbc40_12"], help="default %(default)s")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["plain", "shared"], help="default %(default)s")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels; default %(default)s")
    for name, default in (("batch", 64), ("steps", 5), ("kinds", 16)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default %(default)s")
    options = parser.parse_args()

    images, labels = stopwatch.random_batch(options.batch, options.side, classes=10)
    for network in options.networks:
        found = {form: profile(network, form, images, labels, options.steps) for form in options.forms}
        most = collections.Counter()
        for kinds in found.values():
            most |= collections.Counter(kinds)
        rows = {kind: [kinds.get(kind, 0.0) for kinds in found.values()] for kind, _ in most.most_common(options.kinds)}
        rows["all"] = [sum(kinds.values()) for kinds in found.values()]
        print(f"\n{network}, {options.side} × {options.side}, batch {options.batch}: ms a step\n")
        print("| | " + " | ".join(found) + " |\n|---" + "|---:" * len(found) + "|")
        for kind, row in rows.items():
            print(f"| {kind} | " + " | ".join(f"{time:.1f}" for time in row) + " |", flush=True)


if __name__ == "__main__":
    main()
