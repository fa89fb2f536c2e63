"""Code that all experiments share: images, trainings with several seeds, and figures.

Results are saved as JSON beside the figure. An interrupted experiment resumes after its last complete training.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image

import keras_resdense
from keras_resdense.data.examples import Examples
from keras_resdense.data.tfdata import prefetch
from keras_resdense.files import staged, write_text
from keras_resdense.networks.layers import Network

#: Colours of Okabe and Ito, which colour-blind readers can distinguish, that are dark enough for a line, and greys.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#666666"
MARKS = "os^DvPX<>"
#: Number of images for the errors after each epoch. The final error is measured on all test images.
TEST_IMAGES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """How all networks are trained: SGD with momentum 0.9, a warm-up, and a cosine decay.

    Attributes:
        name: Name of the files, without suffix.
        data: Name of the data set.
        images: Number of training images. The first ones of the data set are used.
        side: Height and width that images are resized to, in pixels.
        epochs: Number of epochs of each training.
        seeds: Number of times that each network is trained.
        quick: Whether networks have one block per stage and run without compilation, to test a script.
        folder: Folder of the files.
    """

    name: str
    data: str = "fashion_mnist"
    images: int = 6400
    side: int = 14
    epochs: int = 10
    seeds: int = 3
    quick: bool = False
    folder: Path = Path(__file__).parent / "figures"
    batch_size = 128
    learning_rate = 0.1
    weight_decay = 1e-4

    def build(self, row: Network) -> keras.Model:
        """Builds a network for the experiment's images."""
        depths = (1,) * len(row.depths) if self.quick else row.depths
        row = dataclasses.replace(row, depths=depths, weight_decay=self.weight_decay)
        return keras_resdense.create_model(row, input_shape=(self.side, self.side, 1))

    @functools.cached_property
    def data_sets(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Images `(images, side, side, 1)` of mean 0 and standard deviation 1 and classes, for training and testing."""
        data = keras_resdense.load_data(self.data)
        train, labels = self._read(data.train, self.images)
        test, test_labels = self._read(data.test, data.test.count)
        mean, deviation = train.mean(), train.std()
        return ((train - mean) / deviation, labels), ((test - mean) / deviation, test_labels)

    def train(self, rows: dict[str, Network], look: Callable[[keras.Model], Any] = lambda model: None) -> dict:
        """Trains each network with each seed, except for trainings that are complete.

        Args:
            rows: Rows of the networks, by their names in the figure.
            look: Function that returns measurements of a network for JSON; called before and after training.

        Returns:
            For each network, "parameters", "macs" and "runs". Each run has "train_error" and "test_error" after every
            epoch, "final_error", all in percent, "step_ms", and the results of `look` "before" and "after" training.

        Raises:
            ValueError: If the saved results have other settings.
        """
        path = self.folder / f"{self.name}.json"
        settings = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("seeds", "folder")}
        results = read(path) or {"settings": settings, "networks": {}}
        if results["settings"] != settings:
            raise ValueError(f"{path} was made with {results['settings']}: remove it, or name another --folder.")
        for name, row in rows.items():
            network = results["networks"].setdefault(name, {"runs": []})
            done = len(network["runs"])
            if done < self.seeds:
                model = self._compiled(row)
                network["parameters"] = keras_resdense.count_parameters(model)
                network["macs"] = keras_resdense.count_macs(model)
            for seed in range(done, self.seeds):
                run = self._run(model, row, seed, look)
                print(f"{name}, seed {seed}: {run['final_error']:.2f} % of the test images are wrong", flush=True)
                network["runs"].append(run)
                write(path, results)
        return {name: results["networks"][name] for name in rows}

    def save(self, figure: Figure, suffix: str = "") -> None:
        """Saves a figure beside the results."""
        save(figure, self.folder / f"{self.name}{suffix}.png")

    def _read(self, examples: Examples, count: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels, _ = examples.read(np.arange(count))
        images = keras.ops.cast(images, "float32")
        return np.array(keras.ops.image.resize(images, (self.side, self.side), antialias=True)), np.array(labels)

    def _batches(self, images: np.ndarray, labels: np.ndarray, shuffle: bool = False) -> tf.data.Dataset:
        examples = tf.data.Dataset.from_tensor_slices((images, labels))
        return prefetch((examples.shuffle(len(images)) if shuffle else examples).batch(self.batch_size))

    def _compiled(self, row: Network) -> keras.Model:
        steps = self.epochs * math.ceil(self.images / self.batch_size)
        warmup = math.ceil(steps / 10)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, steps - warmup, warmup_target=self.learning_rate, warmup_steps=warmup
        )
        model = self.build(row)
        optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=self.quick)
        return model

    def _run(self, model: keras.Model, row: Network, seed: int, look: Callable) -> dict:
        """Trains a compiled network from new weights. Compiling a deep network again would take as long as an epoch."""
        keras.utils.set_random_seed(seed)
        model.set_weights(self.build(row).get_weights())
        # The state of the optimiser starts at zero: the momenta and the step count.
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        before, clock = look(model), _StepClock()
        train, test = self.data_sets
        some = self._batches(*(part[:TEST_IMAGES] for part in test))
        batches = self._batches(*train, shuffle=True)
        options = {"validation_data": some, "callbacks": [clock], "shuffle": False, "verbose": 0}
        history = model.fit(batches, epochs=self.epochs, **options).history
        return {
            "train_error": _percent_wrong(history["accuracy"]),
            "test_error": _percent_wrong(history["val_accuracy"]),
            "final_error": _percent_wrong(model.evaluate(self._batches(*test), verbose=0)[1:])[0],
            "step_ms": round(1000 * statistics.median(clock.seconds), 1),
            "before": before,
            "after": look(model),
        }


class _StepClock(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.started)


def _percent_wrong(accuracies: list[float]) -> list[float]:
    return [round(100 * (1 - accuracy), 3) for accuracy in accuracies]


def command_line(description: str, experiment: Experiment) -> Experiment:
    """Parses the command line of a script that trains.

    Args:
        description: The script's docstring.
        experiment: Experiment without options.
    """
    parser = options_parser(description)
    parser.add_argument("--full", action="store_true", help="all 60,000 images at 28×28 pixels")
    options = parser.parse_args()
    changes = {"folder": options.folder}
    if options.full:
        changes |= {"name": f"{experiment.name}_full", "images": 60_000, "side": 28}
    if options.quick:
        changes |= {"data": "digits", "images": 256, "side": 8, "epochs": 1, "seeds": 1, "quick": True}
    return dataclasses.replace(experiment, **changes)


def options_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser of the options that all scripts have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only test that the script runs")
    parser.add_argument(
        "--folder", type=Path, default=Experiment.folder, help="folder of the results; default %(default)s"
    )
    return parser


def read(path: Path) -> dict:
    """Reads the results, if there are any."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, results: dict) -> None:
    """Writes the results as JSON."""
    write_text(path, json.dumps(results, indent=1) + "\n")


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG with a small palette, which needs a third of the bytes."""
    with staged(path) as temporary:
        figure.savefig(temporary, dpi=120)
        Image.open(temporary).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE).save(temporary, optimize=True)


def panels(count: int, width: float = 4.2, height: float = 3.4, sharey: bool = False):
    """Returns a figure and its panels, side by side.

    Args:
        count: Number of panels.
        width: Width of a panel, in inches.
        height: Height of a panel, in inches.
        sharey: Whether the panels share their vertical axis.
    """
    figure = Figure(figsize=(count * width, height), layout="constrained")
    axes = figure.subplots(1, count, sharey=sharey, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_spread(axis, runs: list[list[float]], style: int, label: str, line: str = "-") -> None:
    """Draws the mean of several runs as a line, and shades the range from minimum to maximum.

    Args:
        axis: Panel of a figure.
        runs: Values of each run, drawn over 1, 2, 3, …
        style: Index into `COLOURS` and `MARKS`.
        label: Label in the legend.
        line: Line style of Matplotlib.
    """
    values, colour = np.array(runs), COLOURS[style]
    places = np.arange(1, values.shape[1] + 1)
    axis.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    axis.plot(places, values.mean(0), MARKS[style] + line, color=colour, markersize=3, label=label)


def draw_points(axis, points: list[tuple[float, float, str]], style: int, label: str) -> None:
    """Connects points with a line and labels each of them.

    Args:
        axis: Panel of a figure.
        points: Horizontal position, vertical position and label of each point.
        style: Index into `COLOURS` and `MARKS`; it also puts the labels above or below the points.
        label: Label in the legend.
    """
    across, up = [x for x, _, _ in points], [y for _, y, _ in points]
    axis.plot(across, up, f"{MARKS[style]}-", color=COLOURS[style], markersize=4, label=label)
    for x, y, words in points:
        place = (4, -9) if style % 2 == 0 else (-4, 5)
        side = "left" if style % 2 == 0 else "right"
        axis.annotate(words, (x, y), place, textcoords="offset points", ha=side, fontsize=7, color=COLOURS[style])


def draw_final_errors(axis, networks: dict[str, dict], notes: dict[str, str]) -> None:
    """Draws the final errors of networks, one a line, the best at the top: a mark for each run, a bar for the mean.

    Args:
        axis: Panel of a figure.
        networks: Results of `Experiment.train`, styled in their order.
        notes: Text below the name of each network.
    """
    styles = {name: style for style, name in enumerate(networks)}
    ranked = sorted(networks, key=lambda name: mean_error(networks[name]), reverse=True)
    for place, name in enumerate(ranked):
        errors, colour = [run["final_error"] for run in networks[name]["runs"]], COLOURS[styles[name]]
        axis.plot(errors, [place] * len(errors), MARKS[styles[name]], color=colour, alpha=0.6)
        axis.plot(mean_error(networks[name]), place, "|", color=colour, markersize=22, markeredgewidth=2)
    axis.set_yticks(range(len(ranked)), [f"{name}\n{notes[name]}" for name in ranked])
    axis.set(xlabel="test error (%)", ylim=(-0.6, len(ranked) - 0.4))


def mean_error(network: dict) -> float:
    """Returns the mean final error of a network's runs, in percent."""
    return statistics.mean(run["final_error"] for run in network["runs"])


def print_table(networks: dict[str, dict]) -> None:
    """Prints the results as a Markdown table: means of the errors, and the range of test errors."""
    print("| network | parameters | million MACs | ms a step | training error | test error |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, network in networks.items():
        runs = network["runs"]
        errors = [run["final_error"] for run in runs]
        print(
            f"| {name} | {network['parameters']:,} | {network['macs'] / 1e6:.1f} "
            f"| {statistics.median(run['step_ms'] for run in runs):.0f} "
            f"| {statistics.mean(run['train_error'][-1] for run in runs):.1f} % "
            f"| {mean_error(network):.1f} % ({min(errors):.1f}–{max(errors):.1f}) |"
        )
