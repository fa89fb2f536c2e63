"""What every data set that feeds a network needs."""

from __future__ import annotations

from collections.abc import Callable
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


def mapped(dataset: Any, function: Callable[..., Any]) -> Any:
    """Returns a data set of what a function makes of the elements, on all cores and in their order."""
    import tensorflow as tf

    return dataset.map(as_it_is(function), tf.data.AUTOTUNE, deterministic=True)


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function for a data set that TensorFlow does not rewrite.

    It would look for Python's `if` and `for` over tensors in the source of the function and of all that it calls, which
    takes seconds. There are none in this package.
    """
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)
