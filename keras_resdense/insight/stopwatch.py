"""Timers for benchmarks. This file imports nothing from the package, so it can also time peers."""

from __future__ import annotations

import operator
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np

#: Warm-up steps: frameworks compile in the first and lay out memory in the second.
WARM_UP = 2


def seconds(run: Callable[[], object], times: int, warm_up: int = WARM_UP) -> list[float]:
    """Returns the seconds that each of `times` calls takes, after `warm_up` calls that are not timed."""
    for _ in range(warm_up):
        run()
    ticks = [time.perf_counter()]
    for _ in range(times):
        run()
        ticks.append(time.perf_counter())
    return _differences(ticks)


def random_batch(size: int, side: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images `(size, side, side, 3)` and labels `(size,)`, the same in every call."""
    import numpy as np

    random = np.random.default_rng(0)
    return random.normal(size=(size, side, side, 3)).astype("float32"), random.integers(classes, size=size)


def compile_model(model: keras.Model, sgd: type[keras.optimizers.SGD]) -> None:
    """Compiles a Keras classifier as in all benchmarks: SGD with momentum, and defaults otherwise."""
    # Without this, KerasHub's models compute metrics and the others do not.
    model.compile(sgd(0.01, momentum=0.9), "sparse_categorical_crossentropy", metrics=[])


def fit_seconds(model: keras.Model, images: np.ndarray, labels: np.ndarray, steps: int) -> list[float]:
    """Returns the seconds that each gradient step takes inside `fit`, after two warm-up steps.

    Args:
        model: Compiled Keras model.
        images: A batch, which every step uses.
        labels: Labels of the batch.
        steps: Steps to time.
    """
    import keras
    import tensorflow as tf

    ticks = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ticks.append(time.perf_counter()))
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
    model.fit(batches, steps_per_epoch=WARM_UP + steps, callbacks=[clock], shuffle=False, verbose=0)
    return _differences(ticks[WARM_UP - 1 :])


def memory_mb(field: str = "VmHWM") -> float | None:
    """Returns the memory of this process in MB on Linux, and None elsewhere.

    Args:
        field: "VmHWM" for the peak, "VmRSS" for the current memory.
    """
    status = _facts("/proc/self/status")
    return int(status[field].split()[0]) * 1024 / 1e6 if status else None


def processor() -> str:
    """Returns the name of the processor."""
    return _facts("/proc/cpuinfo").get("model name") or platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Describes the machine that a benchmark ran on."""
    flags = _facts("/proc/cpuinfo").get("flags", "").split()
    return {
        "processor": processor(),
        "instructions": sorted(flag for flag in flags if flag.startswith(("avx", "amx"))),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _facts(path: str) -> dict[str, str]:
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _differences(ticks: list[float]) -> list[float]:
    return list(map(operator.sub, ticks[1:], ticks))
