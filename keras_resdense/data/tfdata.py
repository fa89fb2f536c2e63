"""What every data set that feeds a network needs."""

from __future__ import annotations

from typing import Any

#: Batches that are prepared before they are asked for.
PREFETCHED = 2


def untuned(dataset: Any) -> Any:
    """Returns a data set without TensorFlow's tuning thread; it uses as many threads as there are cores.

    The thread looks for numbers of threads and sleeps up to a minute between two looks. Where an iterator ends, it is
    woken before it is told to stop, so that it often sleeps on, and the end waits for it (seen in 2.21).
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def prefetch(batches: Any) -> Any:
    """Returns an untuned data set that prepares two batches ahead."""
    return untuned(batches.prefetch(PREFETCHED))
