"""Times training steps in several equivalent forms, or shows which operations take the time.

    python benchmarks/forms.py [networks …] [--forms fused plain …] [--side 32] [--batch 32] [--rounds 5] [--steps 4]
    python benchmarks/forms.py --forms shared calls XLA both --steps 10 [networks …]
    python benchmarks/forms.py --operations [networks …]

"plain" uses Keras's own layers. "fused" has batch norm on TensorFlow's fused kernels. "shared" is the package's
default: dense networks compute the statistics of a channel once, and give the kernels suitable widths.
"memory-efficient" networks recompute feature maps for the gradients. The other forms are compiled differently: "calls"
makes all steps of a round in one call of TensorFlow, "XLA" compiles the step with XLA, and "both" does both.

The forms take turns, and each ratio is the median of its time over that of the first form. With `--operations`,
TensorFlow's profile of a step shows the milliseconds of each kind of operation, summed over TensorFlow's threads.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import re
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import keras
import tensorflow as tf
from pages import add_json, cell, describe, load, replace, save, table
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

#: Rows of the table of operations.
OPERATIONS = {
    "convolutions, forward": ("Conv2D",),
    "… gradient of kernels": ("Conv2DBackpropFilter",),
    "… gradient of inputs": ("Conv2DBackpropInput",),
    "fused batch norm, gradient": ("FusedBatchNormGradV3",),
    "fused batch norm, forward": ("FusedBatchNormV3", "FusedBatchNormEx"),
    "multiplications": ("Mul",),
    "means and sums": ("Mean", "Sum"),
    "squared differences": ("SquaredDifference",),
    "tiles": ("Tile",),
    "additions of gradients": ("AddN",),
}
#: An operation in a trace: its name in the graph and its kind, maybe of oneDNN.
OPERATION = re.compile(r"[^:]+:(?:_MklNative|_Mkl)?(?P<kind>[A-Z]\w*)")


def trained(network: str, form: str, batches: tf.data.Dataset, steps: int) -> tuple[keras.Model, float]:
    """Returns a network that has made its first steps in one of the forms, and stays in it, and their seconds."""
    images, _ = batches.element_spec
    xla, together = COMPILED.get(form, (False, False))
    row = keras_resdense.VARIANTS[network]
    if form == FRUGAL:
        row = dataclasses.replace(row, memory_efficient=True)
    with contextlib.ExitStack() as stack:
        for patch in FORMS.get(form, ()):
            stack.enter_context(patch)
        model = keras_resdense.create_model(row, input_shape=tuple(images.shape[1:]))
        stopwatch.compile_model(model, keras_resdense.SGD)
        model.jit_compile, model.steps_per_execution = xla, steps if together else 1
        first = seconds(model, batches, steps)
    print(f"  {form:18}first call {first:.1f} s", flush=True)
    return model, first


def seconds(model: keras.Model, batches: tf.data.Dataset, steps: int) -> float:
    """Returns the seconds of a call of `fit`."""
    return sum(
        stopwatch.seconds(lambda: model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0), 1, warm_up=0)
    )


def times(models: dict[str, keras.Model], batches: tf.data.Dataset, options) -> dict[str, list[float]]:
    """Lets the forms of a network take turns, and returns the seconds of a step in each round."""
    found = {form: [] for form in models}
    for _ in range(options.rounds):
        for form, model in models.items():
            found[form].append(seconds(model, batches, options.steps) / options.steps)
    return found


def ratios(entry: dict, form: str) -> list[float]:
    """Returns the times of a form over those of the first form in the same round."""
    first = next(iter(entry["forms"].values()))
    return [own / base for own, base in zip(entry["forms"][form], first, strict=True)]


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


def shown(entry: dict, kinds: int) -> str:
    """Returns what was measured of a network as a table."""
    forms = entry["forms"]
    if not entry["operations"]:
        rows = (
            (form, f"{statistics.median(found) * 1000:.0f}", spread(ratios(entry, form)))
            for form, found in forms.items()
        )
        return table(("form", "ms", f"over {next(iter(forms))}"), rows)
    most = collections.Counter()
    for found in forms.values():
        most |= collections.Counter(found)
    rows = [(kind, *(f"{found.get(kind, 0.0):.1f}" for found in forms.values())) for kind, _ in most.most_common(kinds)]
    rows.append(("all", *(f"{sum(found.values()):.1f}" for found in forms.values())))
    return table(("ms a step", *forms), rows)


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def title(entry: dict) -> str:
    return f"{entry['network']}, {entry['side']}×{entry['side']}, batch {entry['batch']}"


def tables(entries: list[dict]) -> dict[str, str]:
    timed = [entry for entry in entries if not entry["operations"]]
    dense = [entry for entry in timed if {*FORMS} <= {*entry["forms"]}]
    compiled = [entry for entry in timed if {*COMPILED} <= {*entry["forms"]}]
    traced = [entry for entry in entries if entry["operations"]]
    kept = [entry for entry in traced if {"plain", "shared"} <= {*entry["forms"]}]
    recomputed = [entry for entry in traced if {"shared", FRUGAL} <= {*entry["forms"]}]
    texts = {}
    if dense:
        rows = ((title(entry), *(spread(ratios(entry, form)) for form in entry["forms"])) for entry in dense)
        texts["dense_blocks"] = measured(dense[0]) + table(("network", *dense[0]["forms"]), rows)
    if compiled:
        rows = [
            (
                title(entry),
                *(cell(statistics.median(ratios(entry, form))) for form in COMPILED),
                ", ".join(f"{entry['first_call'][form]:.0f} s" for form in ("XLA", "shared")),
            )
            for entry in compiled
        ]
        header = ("network", f"{compiled[0]['steps']} steps in a call", "XLA", "both", "compiling with XLA, without")
        texts["compiled_forms"] = measured(compiled[0]) + table(header, rows)
    if kept:
        columns = [entry["forms"][form] for entry in kept for form in ("plain", "shared")]
        kinds = OPERATIONS | {"all": {kind for column in columns for kind in column}}
        rows = (
            (label, *(f"{sum(column.get(kind, 0) for kind in kinds[label]):,.0f}" for column in columns))
            for label in kinds
        )
        header = ("ms a step", *(f"{entry['network']}, {form}" for entry in kept for form in ("plain", "ours")))
        texts["operations"] = measured(kept[0]) + table(header, rows)
    if recomputed:
        rows = (
            (title(entry), *(f"{sum(entry['forms'][form].values()):,.0f}" for form in ("shared", FRUGAL)))
            for entry in recomputed
        )
        texts["recomputing"] = measured(recomputed[0]) + table(("ms a step", "ours", FRUGAL), rows)
    return texts


def measured(entry: dict) -> str:
    on = describe(entry["machine"])
    return f"Measured on {on if entry['processors'] > 1 else f'one of {on}'}.\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["densenetbc40_12", "densenetbc100_12"])
    parser.add_argument("--forms", nargs="+", choices=[*FORMS, *COMPILED], help="default the first four")
    parser.add_argument("--operations", action="store_true", help="profile the kinds of operations")
    parser.add_argument("--side", type=int, default=32, help="side of the images, in pixels; default %(default)s")
    for name, default in (("batch", 32), ("rounds", 5), ("steps", 4), ("kinds", 16)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default %(default)s")
    parser.add_argument("--processors", type=int, help="run on so many; default all")
    add_json(parser, __file__)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.processors])
    for network in options.networks:
        if network not in keras_resdense.VARIANTS:
            parser.error(f"there is no network {network}: `keras-resdense list` names all")

    images, labels = stopwatch.random_batch(options.batch, options.side, classes=10)
    batches = prefetch(tf.data.Dataset.from_tensors((images, labels)).repeat())
    for network in options.networks:
        forms = options.forms or list(FORMS)
        print(f"\n{network}, {options.side} × {options.side}, batch {options.batch}")
        models, first = {}, {}
        for form in forms:
            models[form], first[form] = trained(network, form, batches, options.steps)
        entry = {"network": network} | {key: getattr(options, key) for key in ("side", "batch", "operations", "steps")}
        entry |= {"machine": stopwatch.machine(), "processors": len(os.sched_getaffinity(0)), "first_call": first}
        if options.operations:
            entry["forms"] = {form: profile(model, batches, options.steps) for form, model in models.items()}
        else:
            entry["forms"] = times(models, batches, options)
        print(shown(entry, options.kinds), flush=True)
        save(options.json, replace(load(options.json, []), entry, "network", "side", "batch", "operations"))


if __name__ == "__main__":
    main()
