"""Speed and memory of a network in training and inference on this machine."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from keras_resdense.insight import stopwatch
from keras_resdense.insight.analysis import count_macs, count_parameters
from keras_resdense.networks import zoo
from keras_resdense.networks.drop_ins import SGD
from keras_resdense.training import devices
from keras_resdense.training.recipes import PRECISIONS
from keras_resdense.training.report import environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """The timing of inference or of training.

    Attributes:
        name: "inference" or "training step".
        seconds: Seconds of each batch.
        images_per_second: Images per second at their median.
        peak_memory_mb: Peak memory of the process so far, less its memory before the network was built, in MB; None if
            the operating system does not report it.
    """

    name: str
    seconds: Sequence[float]
    images_per_second: float
    peak_memory_mb: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A network's speed.

    Attributes:
        variant: Name of the variant.
        image_size: Side of its images, in pixels.
        batch_size: Images in a batch.
        precision: Precision of the computation.
        parameters: Trainable parameters.
        macs: Multiply-adds for one image.
        processor: Name of the processor.
        environment: Versions and cores, from `report.environment`.
        timings: Timings of "inference" and "training step".
    """

    variant: str
    image_size: int
    batch_size: int
    precision: str
    parameters: int
    macs: int
    processor: str
    environment: dict[str, Any]
    timings: Sequence[Timing]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {self.environment[name]}" for name in ("keras", "tensorflow"))
        head = [
            f"{self.variant}: {self.parameters:,} parameters, {self.macs / 1e6:,.0f} million multiply-adds per image",
            f"{self.image_size} × {self.image_size} pixels, batches of {self.batch_size}, {self.precision}; "
            f"{versions}; {self.environment['cores']} cores, {self.processor}",
            f"\n{'':14}{'ms':>9}{'least–most':>17}{'images/s':>11}{'peak MB':>10}",
        ]
        return "\n".join(head + [_line(timing) for timing in self.timings])


def benchmark(
    variant: str, *, image_size: int | None = None, batch_size: int = 32, steps: int = 10, precision: str = "float32"
) -> Measured:
    """Times `predict` and the gradient steps of `fit` on random images, with Keras's defaults.

    Peak memory is that of the process, so measure each network in a new process.

    Args:
        variant: Name of a variant.
        image_size: Side of the images in pixels; default the published size.
        batch_size: Images in a batch.
        steps: Steps to time in each mode, after two warm-up steps.
        precision: One of `PRECISIONS`.

    Raises:
        ValueError: If the variant does not exist, or a number or the precision is not allowed.
    """
    for name, value in (("batch_size", batch_size), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    row = zoo.get_row(variant)
    side = row.stem.image_size if image_size is None else image_size
    before = stopwatch.memory_mb("VmRSS")
    with devices.precision(precision):
        model = zoo.create_model(variant, input_shape=(side, side, 3))
    images, labels = stopwatch.random_batch(batch_size, side, row.stem.classes)

    def timing(name: str, seconds: Sequence[float]) -> Timing:
        peak = stopwatch.memory_mb()
        return Timing(
            name=name,
            seconds=seconds,
            images_per_second=batch_size / statistics.median(seconds),
            peak_memory_mb=None if peak is None else peak - before,
        )

    predict = stopwatch.seconds(lambda: model.predict(images, batch_size=batch_size, verbose=0), steps)
    inference = timing("inference", predict)
    stopwatch.compile_model(model, SGD)
    return Measured(
        variant=variant.lower(),
        image_size=side,
        batch_size=batch_size,
        precision=precision,
        parameters=count_parameters(model),
        macs=count_macs(model),
        processor=stopwatch.processor(),
        environment=environment(),
        timings=[inference, timing("training step", stopwatch.fit_seconds(model, images, labels, steps))],
    )


def _line(timing: Timing) -> str:
    low, middle, high = (1000 * of(timing.seconds) for of in (min, statistics.median, max))
    memory = "unknown" if timing.peak_memory_mb is None else f"{timing.peak_memory_mb:.0f}"
    spread = f"{low:.1f}–{high:.1f}"
    return f"{timing.name:14}{middle:9.1f}{spread:>17}{timing.images_per_second:11.1f}{memory:>10}"
