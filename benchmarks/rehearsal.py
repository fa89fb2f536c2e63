"""Rehearses a training of ImageNet's size up to its first step: time, memory, order and resumption.

    python benchmarks/rehearsal.py FOLDER [--images 1281167] [--side 96] [--workers 4]

Makes a folder of hard links to some JPEGs in FOLDER and prepares it. Both are kept for the next call. Then one worker,
and several workers at the same time, start a training of ResNet-20 on the folder and on the prepared data.
"""

import argparse
import contextlib
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

from pages import add_json, describe, save, table
from photos import make_images

from keras_resdense.insight import stopwatch

#: Numbers of ImageNet's training images, held-out images and classes.
TRAIN, VALIDATION, CLASSES = 1_281_167, 50_000, 1000
SIDE, BATCH = 64, 64
#: Steps after which the batches of a resumed and an uninterrupted training are compared.
COMPARED = 5
#: Columns of the table: what was measured, and how many digits to show.
COLUMNS = {
    "known, s": ("known", 1),
    "agreed, s": ("agreed", 1),
    "first step, s": ("first_step", 1),
    "MB": ("first_step_mb", 0),
    "middle of an epoch, s": ("middle_of_epoch", 1),
    "an epoch, s": ("epoch", 1),
}


def link(originals: Path, to: Path, count: int) -> None:
    """Makes a folder of `count` training images, and as many held-out ones as in ImageNet, in proportion."""
    files = sorted(str(path) for path in originals.rglob("*.jpg"))
    for split, images in (("train", count), ("val", count * VALIDATION // TRAIN)):
        for label in range(CLASSES):
            (to / split / f"class{label:04}").mkdir(parents=True, exist_ok=True)
        for number in range(images):
            name = f"class{number % CLASSES:04}"
            with contextlib.suppress(FileExistsError):
                os.link(files[number % len(files)], to / split / name / f"{name}_{number}.jpg")


def megabytes() -> float:
    """Returns the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start_training(data_name: str) -> dict:
    """Starts a training as `keras_resdense.train` does, and returns its measurements."""
    import tensorflow as tf

    from keras_resdense.data.batches import pixel_statistics, steps_per_epoch, training_batches
    from keras_resdense.data.sources import load_data
    from keras_resdense.training import agreement, optimisation, recipes
    from keras_resdense.training.classifier import build_classifier, network, plan_of
    from keras_resdense.training.devices import strategy

    recipe = recipes.Recipe(model="resnet20", data=data_name, crop="area", image_size=SIDE, batch_size=BATCH, flip=True)
    settings = recipes.Settings()
    devices = strategy()
    measured, begun = {"tensorflow_mb": megabytes()}, time.perf_counter()

    def passed(what: str) -> None:
        measured[what] = time.perf_counter() - begun

    data = load_data(data_name)
    passed("known")
    agreement.check_workers(devices, recipe, settings, data)
    passed("agreed")
    row = network(recipe)
    plan, steps = plan_of(recipe, data, row, settings.seed), steps_per_epoch(data.train, recipe)
    normalisation = pixel_statistics(data.train, plan.contract(3))
    with devices.scope():
        model = build_classifier(row, plan, normalisation, 3)
        optimisation.compile_phase(model, optimisation.phases_of(recipe)[0], recipe, settings, steps)
    passed("built")
    model.fit(training_batches(data.train, plan, devices), steps_per_epoch=1, shuffle=False, verbose=0)
    passed("first_step")
    measured["first_step_mb"] = megabytes()

    def batch_at(step: int, skipped: int) -> str:
        """Returns the hash of a batch, after reading those between `skipped` and it."""
        batches = iter(training_batches(data.train, plan, devices, skipped))
        for _ in range(step - skipped):
            next(batches)
        images, labels = (devices.experimental_local_results(part)[0].numpy() for part in next(batches))
        return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    measured["resumed_alike"] = batch_at(COMPARED, 0) == batch_at(COMPARED, COMPARED)
    begun = time.perf_counter()
    batch_at(steps // 2, steps // 2)
    passed("middle_of_epoch")

    workers, worker = devices.num_replicas_in_sync, 0
    if workers > 1:
        worker = devices.cluster_resolver.task_id
    key, begun, streamed = tf.constant([0, 0], tf.int64), time.perf_counter(), data.train.worker_handles is not None
    handles = data.train.worker_handles(key, worker, workers) if streamed else data.train.handles(key)
    seen = total = 0
    for part in handles.batch(1024).as_numpy_iterator():
        numbers = [zlib.crc32(record) for record in part] if streamed else part.tolist()
        seen, total = seen + len(numbers), total + sum(numbers)
    passed("epoch")
    return measured | {"seen": seen, "total": total}


def start_workers(data: Path, workers: int) -> list[dict]:
    """Starts a training on several processes, and returns the measurements of each."""
    ports = []
    for _ in range(workers):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(f"127.0.0.1:{free.getsockname()[1]}")
    processes = []
    for index in range(workers):
        cluster = {"cluster": {"worker": ports}, "task": {"type": "worker", "index": index}}
        environment = os.environ | ({"TF_CONFIG": json.dumps(cluster)} if workers > 1 else {})
        command = [sys.executable, __file__, str(data), "--as-worker"]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"A worker on {data} failed.")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def tables(found: dict) -> dict[str, str]:
    rows = []
    for start in found["starts"]:
        most = {key: max(one[key] for one in start["processes"]) for key in start["processes"][0]}
        figures = (f"{most[key]:.{digits}f}" for key, digits in COLUMNS.values())
        rows.append((start["data"], str(start["workers"]), *figures, "yes" if start["right"] else "no"))
    header = ("data", "workers", *COLUMNS, "all images, resumed alike")
    prepared = f" Checking and preparing all images took {found['preparing_s'] / 60:.0f} minutes."
    measured = f"Measured on {describe(found['machine'])}.{prepared if 'preparing_s' in found else ''}"
    return {"rehearsal": f"{measured}\n\n{table(header, rows)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=TRAIN, help="training images; default %(default)s")
    parser.add_argument("--originals", type=int, default=2000, help="files behind the links; default %(default)s")
    parser.add_argument(
        "--side", type=int, default=96, help="shorter side of the images, in pixels; default %(default)s"
    )
    parser.add_argument("--workers", type=int, default=4, help="workers at the same time; default %(default)s")
    add_json(parser, __file__)
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_worker:
        print(json.dumps(start_training(str(options.folder))))
        return
    # The results of the image check are not stored in the user's home.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["KERAS_HOME"] = str(options.folder / "keras")

    originals, folder = options.folder / f"originals-{options.side}", options.folder / f"images-{options.images}"
    prepared = options.folder / f"prepared-{options.images}"
    if not originals.is_dir():
        make_images(originals, options.originals, options.side)
    link(originals, folder, options.images)
    found = {"machine": stopwatch.machine(), "starts": []}
    if not prepared.is_dir():
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "keras_resdense", "prepare", folder, "--to", prepared], check=True)
        found["preparing_s"] = time.perf_counter() - begun
    totals = set()
    for name, data in (("originals", originals), ("folder", folder), ("prepared", prepared)):
        for workers in (1, options.workers):
            processes = start_workers(data, workers)
            right = all(one["resumed_alike"] for one in processes)
            if name == "prepared":
                # Each worker reads its own part of the files, and together they must read what one reads alone.
                totals.add(sum(one["total"] for one in processes))
                right &= sum(one["seen"] for one in processes) == options.images and len(totals) == 1
            found["starts"].append({"data": name, "workers": workers, "right": right, "processes": processes})
            save(options.json, found)
            print(found["starts"][-1], flush=True)
    print(tables(found)["rehearsal"])


if __name__ == "__main__":
    main()
