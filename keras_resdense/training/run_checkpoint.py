"""The callback that saves a training's state: checkpoints, history and best weights."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_resdense.training import checkpoints, report, run_folder, workers
from keras_resdense.training.checkpoints import Position
from keras_resdense.training.optimisation import Phase

#: Checkpoints after epochs may take this many seconds in total, or this share of the time.
SAVING_SECONDS, SAVING_SHARE = 5.0, 0.05


class Interrupted(Exception):
    """The training was asked to stop, and its state is saved."""


class RunCheckpoint(keras.callbacks.Callback):
    """Writes checkpoints, the history and the best weights; stops training at a NaN and on request.

    It must come before the callback that swaps in averaged weights for evaluation, so that these are still in place
    when an evaluation ends.
    """

    def __init__(self, folder: Path, chief: bool, steps: int, save_every: int):
        super().__init__()
        self.folder: Path = folder
        self.chief: bool = chief
        self.steps: int = steps
        self.save_every: int = save_every
        self.position: Position = Position()
        self.epoch_start: int = 0
        self.started: float = 0.0
        self.stopping: bool = False
        self.begun: float = time.perf_counter()
        self.saving: float = 0.0

    def restore(self, phase: Phase) -> int:
        """Restores the model from the last checkpoint of a phase, if there is one, and returns the steps so far.

        Raises:
            ValueError: If other workers have other checkpoints.
        """
        found = checkpoints.restore(self.folder / "checkpoints", self.model, phase.number)
        # The quantised phase has best weights of its own.
        best = -1.0 if phase.quantised else self.position.best
        begin = dataclasses.replace(self.position, phase=phase.number, step=phase.first * self.steps, best=best)
        self.position = found or begin
        if workers.mean(self.model.distribute_strategy, self.position.step) != self.position.step:
            raise ValueError(
                f"The last checkpoint that this worker finds in {self.folder} is from step {self.position.step}, but"
                " other workers find another: give all workers the same --folder, on a file system that they share."
            )
        return self.position.step

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epoch_start, self.started = self.position.step, time.perf_counter()
        if self.epoch_start % self.steps:
            # Keras has just reset the metrics of the epoch that is being resumed.
            checkpoints.restore(self.folder / "checkpoints", self.model, self.position.phase)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        before, step = self.position.step, self.epoch_start + batch + 1
        if not math.isfinite(logs["loss"]):
            raise checkpoints.diverged(f"The loss is {float(logs['loss'])}", self.folder / "checkpoints", step)
        self.position = dataclasses.replace(self.position, step=step)
        # After its last step, an epoch still has to be evaluated.
        if step % self.steps:
            self._stop_if_asked()
        if self.save_every and step // self.save_every > before // self.save_every and step % self.steps:
            self._save()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._check_folder()
        if logs["accuracy"] > self.position.best:
            self.position = dataclasses.replace(self.position, best=float(logs["accuracy"]))
            if self.chief:
                checkpoints.save_weights(self.folder / "best.weights.h5", self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check_folder()
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        measured = {name: float(value) for name, value in logs.items()}
        row = {"epoch": epoch + 1, **measured, "learning_rate": rate, "seconds": time.perf_counter() - self.started}
        self.position = dataclasses.replace(self.position, history=(*self.position.history, row))
        if self.chief:
            report.write_history(self.folder / "history.csv", self.position.history)
        # The chief's clock decides, because all workers save together.
        due = self.saving <= max(SAVING_SECONDS, SAVING_SHARE * (time.perf_counter() - self.begun))
        if epoch + 1 == self.params["epochs"] or workers.mean(self.model.distribute_strategy, self.chief and due):
            self._save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        # Workers can only save together, and one may receive the signal before the others.
        if workers.mean(self.model.distribute_strategy, self.stopping):
            self._save()
            step = self.position.step
            raise Interrupted(f"Stopped on request and saved at step {step}: the same command resumes the training.")

    def _check_folder(self) -> None:
        if self.chief:
            run_folder.check_kept(self.folder)

    def _save(self) -> None:
        self._check_folder()
        start = time.perf_counter()
        checkpoints.save(self.folder / "checkpoints", self.model, self.position, write=self.chief)
        self.saving += time.perf_counter() - start
        # No worker reads the checkpoint before the chief has written it.
        workers.mean(self.model.distribute_strategy, 0.0)


@contextlib.contextmanager
def stopping_on_request(state: RunCheckpoint) -> Iterator[None]:
    """Makes SIGTERM and Ctrl-C save and stop the training after the current step; a second Ctrl-C stops it at once.

    Python handles signals in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, _):
        state.stopping = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            print("\nStopping and saving after this step; Ctrl-C again stops at once.", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
