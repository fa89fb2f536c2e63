"""Training on several machines: the strategy, waiting for workers, and corrections of Keras's `fit`.

Keras 3's TensorFlow trainer has two faults under `MultiWorkerMirroredStrategy` (keras issue 20585):

* To build metrics it needs the shapes of one batch, and takes them from the mean of all replicas' batches,
  a reduction over the network that fails. One replica's batch has the same shapes.
* It averages a step's metrics along axis 0, which scalars do not have.

`patch_trainer` corrects both for this strategy only. It does nothing in a version of Keras that has fixed or removed
these functions.

TensorFlow cannot add a worker to a running job again. If one is lost, all must be restarted.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

#: Seconds between messages while waiting for workers, and seconds until waiting fails.
PATIENCE, LIMIT = 10, 3600


class WorkerLost(ConnectionError):
    """A worker no longer answers, so all others must be restarted."""


def worker_count() -> int:
    """Returns the number of workers that `TF_CONFIG` or SLURM describe; 1 without either."""
    if os.environ.get("TF_CONFIG"):
        cluster = _read_tf_config().get("cluster", {})
        return max(1, sum(len(cluster.get(role, ())) for role in ("chief", "worker")))
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def worker_names() -> list[str]:
    """Returns the names of all workers, such as "worker 0", in the order of their numbers."""
    if worker_count() < 2:
        return [_name("worker", 0)]
    import tensorflow as tf

    return list(_addresses(tf.distribute.cluster_resolver.TFConfigClusterResolver()))


def multi_worker_strategy(kind: type) -> Any:
    """Creates the strategy for the workers that `TF_CONFIG` or SLURM describe, and corrects `fit` for it.

    Call it before any other function of TensorFlow. It returns when all workers have started.

    Args:
        kind: `tf.distribute.MultiWorkerMirroredStrategy` or a subclass.

    Raises:
        ValueError: If neither describes several workers.
        TimeoutError: If a worker has not started within an hour.
    """
    import tensorflow as tf

    if worker_count() < 2:
        raise ValueError(
            "The strategy needs several workers, but TF_CONFIG and SLURM describe none. For two on this machine, set"
            ' TF_CONFIG=\'{"cluster": {"worker": ["127.0.0.1:5001", "127.0.0.1:5002"]}, "task": {"type": "worker",'
            ' "index": 0}}\' for one and index 1 for the other.'
        )
    if not os.environ.get("TF_CONFIG"):
        _describe_slurm()
    patch_trainer()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    others = _addresses(resolver)
    mine = others.pop(_name(resolver.task_type, resolver.task_id))
    # TensorFlow also waits, but without a message.
    await_workers(others, int(mine.rpartition(":")[2]))
    return kind(resolver)


def await_workers(others: Mapping[str, str], port: int) -> None:
    """Waits until all other workers answer, and prints every ten seconds which of them do not.

    Args:
        others: Names and addresses of the others, such as `{"worker 1": "127.0.0.1:5002"}`.
        port: Port on which this worker answers the others.

    Raises:
        TimeoutError: If a worker does not answer within an hour.
    """
    start = time.monotonic()
    spoken = start
    with socket.create_server(("", port)):
        while missing := _silent(others):
            now = time.monotonic()
            if now - start > LIMIT:
                raise TimeoutError(f"No answer within {LIMIT} s from {missing}: start it, and restart this worker.")
            if now - spoken > PATIENCE:
                spoken = now
                print(f"Waiting for {missing} to start.", file=sys.stderr, flush=True)
            time.sleep(0.2)


@contextlib.contextmanager
def noticing_losses() -> Iterator[None]:
    """Replaces TensorFlow's errors for a lost worker by a `WorkerLost` that names it."""
    import tensorflow as tf

    errors = tf.errors
    try:
        yield
    except errors.OpError as error:
        kinds = errors.UnavailableError, errors.AbortedError, errors.CancelledError, errors.DeadlineExceededError
        # A worker that has restarted answers, but does not know the group of the collective operation.
        is_loss = isinstance(error, kinds) or "Collective ops is aborted" in str(error)
        if worker_count() < 2 or not is_loss:
            raise
        gone = _silent(_addresses(tf.distribute.cluster_resolver.TFConfigClusterResolver()))
        raise WorkerLost(
            f"The connection to {gone or 'a worker that answers again'} is lost. The same command on every worker"
            " resumes from the last checkpoint."
        ) from error


def start_again() -> None:
    """Restarts this process with the same command."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_chief(strategy: Any) -> bool:
    """Returns whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().as_dict():
        return True
    roles = resolver.cluster_spec().as_dict()
    return resolver.task_type == "chief" or ("chief" not in roles and resolver.task_id == 0)


def mean(strategy: Any, value: float) -> float:
    """Returns the mean of all workers' values. It waits for all of them."""
    import tensorflow as tf

    if not _is_multi_worker(strategy):
        return value
    values = strategy.experimental_distribute_values_from_function(lambda _: tf.constant(float(value), tf.float64))
    return float(strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None))


def gather(strategy: Any, text: str) -> list[str]:
    """Returns the texts of all workers in the order of their numbers. It waits for all of them."""
    import numpy as np
    import tensorflow as tf

    if not _is_multi_worker(strategy):
        return [text]
    replicas = strategy.num_replicas_in_sync

    def exchange(row: np.ndarray) -> np.ndarray:
        def alone(context):
            mine = np.arange(replicas)[:, None] == context.replica_id_in_sync_group
            return tf.constant(np.where(mine, row, 0.0))

        values = strategy.experimental_distribute_values_from_function(alone)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy().astype(int)

    encoded = np.frombuffer(text.encode(), "uint8")
    lengths = exchange(np.array([len(encoded)]))[:, 0]
    rows = exchange(np.pad(encoded, (0, max(1, lengths.max()) - len(encoded))))
    texts = [row[:length].astype("uint8").tobytes().decode() for row, length in zip(rows, lengths, strict=True)]
    return texts[:: replicas // worker_count()]


def patch_trainer() -> None:
    """Corrects Keras's trainer for `MultiWorkerMirroredStrategy`, once, and only if it has the faults."""
    from keras.src.backend.tensorflow import trainer

    reduce, build = trainer.reduce_per_replica, trainer.TensorFlowTrainer._maybe_symbolic_build
    if _has(reduce, 'reduce("MEAN", v, axis=0)'):
        trainer.reduce_per_replica = _reducing_scalars(reduce)
    if _has(build, '"MEAN"'):
        trainer.TensorFlowTrainer._maybe_symbolic_build = _building_locally(build)


def _has(function, fault: str) -> bool:
    return not hasattr(function, "__wrapped__") and fault in inspect.getsource(function)


def _read_tf_config() -> dict:
    """Reads TF_CONFIG; raises a ValueError if it does not describe this worker."""
    text = os.environ["TF_CONFIG"]
    example = '{"cluster": {"worker": ["node1:5001", "node2:5001"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        known = {(role, n) for role, addresses in config.get("cluster", {}).items() for n in range(len(addresses))}
        task = config.get("task", {})
        found = (task["type"], int(task["index"])) if task else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"TF_CONFIG is {text}, which cannot be read ({error}). It must be like {example}.") from error
    if found and found not in known:
        names = ", ".join(_name(*one) for one in sorted(known))
        raise ValueError(f"TF_CONFIG says that this is {_name(*found)}, but its cluster has only {names}.")
    return config


def _describe_slurm() -> None:
    """Sets TF_CONFIG from SLURM's description of the job.

    TensorFlow's `SlurmClusterResolver` fails without GPUs, or if SLURM has assigned them to tasks. So it is given one
    GPU per task and told not to configure them.
    """
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        gpus_per_node=worker_count(), gpus_per_task=1, auto_set_gpu=False
    )
    cluster = resolver.cluster_spec().as_dict()
    role, index = resolver.get_task_info()
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": role, "index": index}})


def _is_multi_worker(strategy) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and worker_count() > 1


def _name(role: str, index: int) -> str:
    return f"{role} {index}"


def _addresses(resolver) -> dict[str, str]:
    roles = resolver.cluster_spec().as_dict()
    return {_name(role, index): roles[role][index] for role in sorted(roles) for index in range(len(roles[role]))}


def _silent(workers: Mapping[str, str]) -> str:
    """Returns the names and addresses of workers that do not answer; "" if all do."""
    silent = []
    for name, address in workers.items():
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            silent.append(f"{name} at {address}")
    return ", ".join(silent)


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
