"""The callback that tells how far a whole training is, and when it will end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from keras_resdense.progress import keras_verbosity, progress, write_above
from keras_resdense.training.run_checkpoint import RunCheckpoint


class RunProgress(keras.callbacks.Callback):
    """Shows one bar over all epochs and phases on a terminal, and writes a line now and then elsewhere.

    It must come after the run's checkpoint, which counts the steps. Only the chief tells anything.
    """

    def __init__(self, state: RunCheckpoint, epochs: int):
        super().__init__()
        self.state: RunCheckpoint = state
        self.epochs: int = epochs
        self.epoch: int = 0
        self.told: int = 0
        self.advance: Callable[[int, str], None] | None = None
        self.shown: contextlib.ExitStack = contextlib.ExitStack()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step = self.state.position.step
        if self.advance is None and self.state.chief:
            # The first step also builds the graph. Counted, it would make the rest look long.
            whole = progress("Training", self.epochs * self.state.steps, step)
            self.advance, self.told = self.shown.enter_context(whole), step
        elif self.advance:
            self.advance(step - self.told, f"epoch {self.epoch} of {self.epochs}, loss {logs['loss']:.3g}")
            self.told = step

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.state.chief and not keras_verbosity():
            measured = ", ".join(f"{name} {value:.4f}" for name, value in logs.items())
            write_above(f"Epoch {self.epoch}/{self.epochs}: {measured}")

    def close(self) -> None:
        """Ends the bar."""
        self.shown.close()
