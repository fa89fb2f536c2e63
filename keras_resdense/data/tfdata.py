"""Options and helpers for `tf.data`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Number of batches to prepare ahead.
PREFETCHED = 2


def untuned(dataset: Any) -> Any:
    """Returns a data set without TensorFlow's tuning thread. It uses one thread per core.

    The tuning thread sleeps for up to a minute at a time. When an iterator ends, TensorFlow wakes the thread before it
    tells it to stop, so that the thread often sleeps again and the end waits for it (seen in 2.21).
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def prefetch(batches: Any) -> Any:
    """Returns an untuned data set that prepares two batches ahead."""
    return untuned(batches.prefetch(PREFETCHED))


def mapped(dataset: Any, function: Callable[..., Any]) -> Any:
    """Maps a data set with a function, on all cores and in order."""
    import tensorflow as tf

    return dataset.map(without_autograph(function), tf.data.AUTOTUNE, deterministic=True)


def without_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that AutoGraph does not rewrite when a data set calls it.

    AutoGraph takes seconds to search the source of a function and its callees for `if` and `for` over tensors. This
    package has none.
    """
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)
