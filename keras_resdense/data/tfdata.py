"""What every data set that feeds a network needs."""

from __future__ import annotations

#: Batches that are prepared before they are asked for.
PREFETCHED = 2


def prefetch(batches):
    """Returns a data set that prepares two batches ahead, with as many threads as there are cores.

    TensorFlow would look for numbers of threads in a thread of its own, which sleeps ever longer between two looks.
    The end of an iterator waits for it to wake up (seen in 2.21), so that an evaluation took up to twice its time.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(PREFETCHED).with_options(options)
