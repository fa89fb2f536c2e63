"""Training on several machines: their strategy, how workers wait for one another, and corrections of Keras's `fit`.

Keras 3's TensorFlow trainer has two faults under `MultiWorkerMirroredStrategy` (keras issue 20585):

* To build metrics it needs the shapes of one batch, and takes them from the mean of all replicas' batches,
  a reduction over the network that fails. One replica's batch has the same shapes.
* It averages a step's metrics "along axis 0", which scalars do not have.

`patch_trainer` corrects both for this strategy only; all others run Keras's own code. It does not change a version of
Keras that has fixed or removed these functions.

TensorFlow cannot take a worker back into a running job: if one is lost, all must be restarted.
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

#: Seconds between messages while workers are waited for, and after which the waiting is given up.
PATIENCE, LIMIT = 10, 3600


class WorkerLost(ConnectionError):
    """A worker no longer answers, so the others cannot go on without starting anew."""


def worker_count() -> int:
    """Counts the workers that `TF_CONFIG` or SLURM name; 1 where neither names any."""
    if os.environ.get("TF_CONFIG"):
        cluster = _read_tf_config().get("cluster", {})
        return max(1, sum(len(cluster.get(role, ())) for role in ("chief", "worker")))
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def worker_names() -> list[str]:
    """Names the workers in the order of their numbers, such as "worker 0"; alone, it is one."""
    if worker_count() < 2:
        return [_name("worker", 0)]
    import tensorflow as tf

    return list(_addresses(tf.distribute.cluster_resolver.TFConfigClusterResolver()))


def multi_worker_strategy(kind: type) -> Any:
    """Creates the strategy over the workers that `TF_CONFIG` or SLURM name, and corrects `fit` for it.

    Call it before anything else of TensorFlow. It returns once all workers are there.

    Args:
        kind: `tf.distribute.MultiWorkerMirroredStrategy` or a subclass.

    Raises:
        ValueError: If neither names several workers.
        TimeoutError: If some of them have not started within an hour.
    """
    import tensorflow as tf

    if worker_count() < 2:
        raise ValueError(
            "Several workers are asked for, but neither TF_CONFIG nor SLURM names them. For two on this machine, set"
            ' TF_CONFIG=\'{"cluster": {"worker": ["127.0.0.1:5001", "127.0.0.1:5002"]}, "task": {"type": "worker",'
            ' "index": 0}}\' for one and index 1 for the other.'
        )
    if not os.environ.get("TF_CONFIG"):
        _describe_slurm()
    patch_trainer()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    others = _addresses(resolver)
    mine = others.pop(_name(resolver.task_type, resolver.task_id))
    # TensorFlow waits, too, but without a word.
    await_workers(others, int(mine.rpartition(":")[2]))
    return kind(resolver)


def await_workers(others: Mapping[str, str], port: int) -> None:
    """Waits until other workers answer, and says every ten seconds which of them do not.

    Args:
        others: Their names and addresses, such as `{"worker 1": "127.0.0.1:5002"}`.
        port: Where this one lets the others find it.

    Raises:
        TimeoutError: If some of them do not answer within an hour.
    """
    start = time.monotonic()
    spoken = start
    with socket.create_server(("", port)):
        while missing := _silent(others):
            now = time.monotonic()
            if now - start > LIMIT:
                raise TimeoutError(f"Waited {LIMIT} s in vain for {missing}: start it, and this one again.")
            if now - spoken > PATIENCE:
                spoken = now
                print(f"Waiting for {missing} to start.", file=sys.stderr, flush=True)
            time.sleep(0.2)


@contextlib.contextmanager
def noticing_losses() -> Iterator[None]:
    """Turns the errors that TensorFlow raises where a worker is gone into one that names it.

    Raises:
        WorkerLost: In their place.
    """
    import tensorflow as tf

    errors = tf.errors
    try:
        yield
    except errors.OpError as error:
        kinds = errors.UnavailableError, errors.AbortedError, errors.CancelledError, errors.DeadlineExceededError
        # A worker that is back already answers, but doesn't know the group that the collective operation is for.
        is_loss = isinstance(error, kinds) or "Collective ops is aborted" in str(error)
        if worker_count() < 2 or not is_loss:
            raise
        gone = _silent(_addresses(tf.distribute.cluster_resolver.TFConfigClusterResolver()))
        raise WorkerLost(
            f"The connection to {gone or 'a worker that answers again'} is lost. The same command on every worker"
            " resumes from the last checkpoint."
        ) from error


def start_again() -> None:
    """Replaces this process by one of the same command."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_chief(strategy: Any) -> bool:
    """Says whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().as_dict():
        return True
    roles = resolver.cluster_spec().as_dict()
    return resolver.task_type == "chief" or ("chief" not in roles and resolver.task_id == 0)


def mean(strategy: Any, value: float) -> float:
    """Returns the mean of all workers' values, once each of them has come here; alone, the value."""
    import tensorflow as tf

    if not _is_multi_worker(strategy):
        return value
    values = strategy.experimental_distribute_values_from_function(lambda _: tf.constant(float(value), tf.float64))
    return float(strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None))


def gather(strategy: Any, text: str) -> list[str]:
    """Returns the texts of all workers in the order of their numbers, once each has come here; alone, the text."""
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
    """Reads TF_CONFIG.

    Raises:
        ValueError: If it does not describe this worker.
    """
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
    """Sets TF_CONFIG as SLURM describes the job.

    TensorFlow's `SlurmClusterResolver` knows SLURM's names of machines, but fails where there are no GPUs, or where
    SLURM has shared them out among the tasks: so it is told of one for each task, and does not touch them.
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
    """Names those workers at whose address nobody answers; "" for none."""
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
