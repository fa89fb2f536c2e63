"""Several machines: which strategy they ask for, and what Keras's `fit` lacks for it.

Keras 3's TensorFlow trainer has two faults under `MultiWorkerMirroredStrategy` (keras issue 20585):

* To build metrics it needs the shapes of one batch, and takes them from the mean of all replicas' batches,
  a reduction over the network that fails. One replica's batch has the same shapes.
* It averages a step's metrics "along axis 0", which scalars do not have.

`mend` corrects both for this strategy alone: every other runs Keras's own code. A Keras that no longer has
the two functions, or has them mended, is left as it is.
"""

from __future__ import annotations

import functools
import inspect
import json
import os


def worker_count() -> int:
    """Counts the workers that `TF_CONFIG` or SLURM name; 1 where neither names any."""
    if "TF_CONFIG" in os.environ:
        cluster = json.loads(os.environ["TF_CONFIG"]).get("cluster", {})
        return max(1, sum(len(cluster.get(role, ())) for role in ("chief", "worker")))
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def multi_worker_strategy():
    """Makes the strategy over the workers that `TF_CONFIG` or SLURM name, and mends `fit` for it.

    Call it before anything else of TensorFlow. It returns once all workers are there.

    Raises:
        ValueError: If neither names several workers.
    """
    import tensorflow as tf

    if worker_count() < 2:
        raise ValueError(
            "Several workers are asked for, but neither TF_CONFIG nor SLURM names them. For two on this machine, set"
            ' TF_CONFIG=\'{"cluster": {"worker": ["127.0.0.1:5001", "127.0.0.1:5002"]}, "task": {"type": "worker",'
            ' "index": 0}}\' for one and index 1 for the other.'
        )
    mend()
    resolver = None if "TF_CONFIG" in os.environ else tf.distribute.cluster_resolver.SlurmClusterResolver()
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def is_chief(strategy) -> bool:
    """Says whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().as_dict():
        return True
    roles = resolver.cluster_spec().as_dict()
    return resolver.task_type == "chief" or ("chief" not in roles and resolver.task_id == 0)


def mend() -> None:
    """Corrects Keras's trainer for `MultiWorkerMirroredStrategy`, once, and only where it has the faults."""
    from keras.src.backend.tensorflow import trainer

    reduce, build = trainer.reduce_per_replica, trainer.TensorFlowTrainer._maybe_symbolic_build
    if 'reduce("MEAN", v, axis=0)' in inspect.getsource(reduce):
        trainer.reduce_per_replica = _reducing_scalars(reduce)
    if "_is_multi_worker" not in vars(build) and '"MEAN"' in inspect.getsource(build):
        trainer.TensorFlowTrainer._maybe_symbolic_build = _building_locally(build)


def _is_multi_worker(strategy) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and worker_count() > 1


def _reducing_scalars(reduce):
    @functools.wraps(reduce)
    def reduce_per_replica(values, strategy, reduction):
        import keras
        import tensorflow as tf

        if not _is_multi_worker(strategy) or reduction not in ("auto", "mean"):
            return reduce(values, strategy, reduction)
        return keras.tree.map_structure(lambda v: strategy.reduce(tf.distribute.ReduceOp.MEAN, v, axis=None), values)

    return reduce_per_replica


def _building_locally(build):
    @functools.wraps(build)
    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        import keras

        if iterator is not None and _is_multi_worker(self.distribute_strategy):
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(
                lambda v: self.distribute_strategy.experimental_local_results(v)[0], next(batches)
            )
            iterator = None
        return build(self, iterator, data_batch)

    return _maybe_symbolic_build
