"""Times training steps in several equivalent forms, or shows which operations take the time.

    python benchmarks/forms.py [networks …] [--forms fused plain …] [--side 32] [--batch 32] [--rounds 5] [--steps 4]
    python benchmarks/forms.py --forms shared calls XLA both --steps 10 [networks …]
    python benchmarks/forms.py --operations [networks …]

"plain" uses Keras's own layers. "fused" has batch norm on TensorFlow's fused kernels. "shared" is the package's
default: dense networks compute the statistics of a channel once, and give the kernels suitable widths.
"memory-efficient" dense networks recompute the inputs of convolutions for the gradients. The other forms are compiled
differently: "calls" makes all steps of a round in one call of TensorFlow, "XLA" compiles the step with XLA, and "both"
does both.

The forms take turns, and each ratio is the median of its time over that of the first form. With `--operations`,
TensorFlow's profile of a step shows the milliseconds of each kind of operation, summed over TensorFlow's threads.
"""

import argparse
import collections
import contextlib
import dataclasses
import re
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import keras
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

import keras_resdense
from keras_resdense.data.tfdata import prefetch
from keras_resdense.insight import stopwatch
from keras_resdense.networks import dense_layers, drop_ins, layers

_STYLES = (layers.Style, keras_resdense.DenseStyle)
PLAIN = [
    *(mock.patch.object(style, "batch_norm_layer", keras.layers.BatchNormalization) for style in _STYLES),
    mock.patch.object(keras_resdense.DenseStyle, "activation_layer", keras.layers.Activation),
    mock.patch.object(dense_layers, "Concatenate", keras.layers.Concatenate),
]
FUSED = [mock.patch.object(keras_resdense.DenseStyle, "batch_norm_layer", drop_ins.BatchNormalization)]
FRUGAL = "memory-efficient"
FORMS = {"fused": FUSED, "plain": PLAIN, "shared": [], FRUGAL: []}
#: Forms that are compiled differently: whether by XLA, and whether all steps are one call.
COMPILED = {"calls": (False, True), "XLA": (True, False), "both": (True, True)}

#: An operation in a trace: its name in the graph and its kind, maybe of oneDNN.
OPERATION = re.compile(r"[^:]+:(?:_MklNative|_Mkl)?(?P<kind>[A-Z]\w*)")


def trained(network: str, form: str, batches: tf.data.Dataset, steps: int) -> keras.Model:
    """Returns a network that has made its first steps in one of the forms, and stays in it."""
    images, _ = batches.element_spec
    xla, together = COMPILED.get(form, (False, False))
    row = keras_resdense.VARIANTS[network]
    if form == FRUGAL:
        row = dataclasses.replace(row, memory_efficient=True)
    with contextlib.ExitStack() as stack:
        for patch in FORMS.get(form, ()):
            stack.enter_context(patch)
        model = keras_resdense.create_model(row, input_shape=tuple(images.shape[1:]))
        stopwatch.compile_model(model)
        model.jit_compile, model.steps_per_execution = xla, steps if together else 1
        first = seconds(model, batches, steps)
    print(f"  {form:18}first call {first:.1f} s", flush=True)
    return model


def seconds(model: keras.Model, batches: tf.data.Dataset, steps: int) -> float:
    """Returns the seconds of a call of `fit`."""
    return sum(
        stopwatch.seconds(lambda: model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0), 1, warm_up=0)
    )


def print_times(models: dict[str, keras.Model], batches: tf.data.Dataset, options) -> None:
    """Lets the forms of a network take turns and prints how long their steps take."""
    times = {form: [] for form in models}
    for _ in range(options.rounds):
        for form, model in models.items():
            times[form].append(seconds(model, batches, options.steps) / options.steps)
    first = next(iter(times.values()))
    for form, found in times.items():
        ratios = [own / base for own, base in zip(found, first, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"  {form:18}{statistics.median(found) * 1000:8.0f} ms  ratio {spread}", flush=True)


def operations(folder: Path) -> collections.Counter[str]:
    """Returns the milliseconds that each kind of operation took in a trace."""
    (path,) = folder.rglob("*.xplane.pb")
    found = collections.Counter()
    for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
        for event in (event for line in plane.lines for event in line.events):
            if operation := OPERATION.fullmatch(plane.event_metadata[event.metadata_id].name):
                found[operation["kind"]] += event.duration_ps / 1e9
    return found


def profile(model: keras.Model, batches: tf.data.Dataset, steps: int) -> dict[str, float]:
    """Returns the milliseconds that each kind of operation takes in a step."""
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            seconds(model, batches, steps)
        return {kind: time / steps for kind, time in operations(Path(folder)).items()}


def print_operations(models: dict[str, keras.Model], batches: tf.data.Dataset, options) -> None:
    """Prints a table of the kinds of operations that take most time in any of the forms."""
    found = {form: profile(model, batches, options.steps) for form, model in models.items()}
    most = collections.Counter()
    for kinds in found.values():
        most |= collections.Counter(kinds)
    rows = {kind: [kinds.get(kind, 0.0) for kinds in found.values()] for kind, _ in most.most_common(options.kinds)}
    rows["all"] = [sum(kinds.values()) for kinds in found.values()]
    print("\n| ms a step | " + " | ".join(found) + " |\n|---" + "|---:" * len(found) + "|")
    for kind, row in rows.items():
        print(f"| {kind} | " + " | ".join(f"{time:.1f}" for time in row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["densenetbc40_12", "densenetbc100_12"])
    parser.add_argument("--forms", nargs="+", choices=[*FORMS, *COMPILED], help="default the first four")
    parser.add_argument("--operations", action="store_true", help="profile the kinds of operations")
    parser.add_argument("--side", type=int, default=32, help="side of the images, in pixels; default %(default)s")
    for name, default in (("batch", 32), ("rounds", 5), ("steps", 4), ("kinds", 16)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default %(default)s")
    options = parser.parse_args()
    dense = [network for network in options.networks if network in keras_resdense.DENSENETS]
    for network in options.networks:
        if network not in keras_resdense.VARIANTS:
            parser.error(f"there is no network {network}: `keras-resdense list` names all")
        if network not in dense and FRUGAL in (options.forms or ()):
            parser.error(f"{network} is not a dense network, and only dense networks have the form {FRUGAL}")

    images, labels = stopwatch.random_batch(options.batch, options.side, classes=10)
    batches = prefetch(tf.data.Dataset.from_tensors((images, labels)).repeat())
    for network in options.networks:
        forms = options.forms or [form for form in FORMS if network in dense or form != FRUGAL]
        print(f"\n{network}, {options.side} × {options.side}, batch {options.batch}")
        models = {form: trained(network, form, batches, options.steps) for form in forms}
        (print_operations if options.operations else print_times)(models, batches, options)


if __name__ == "__main__":
    main()
