"""A folder of images, prepared once: checked, shuffled and written into sharded TFRecord files that TFDS reads.

Each shard is written whole or not at all, so that a preparation that was stopped goes on where it was. The data set
gets its name when all of it is there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from keras_resdense.checks import require_whole
from keras_resdense.data.checking import decode_fast, read_file
from keras_resdense.data.decoding import is_plain_png
from keras_resdense.data.folder import Files, find_images
from keras_resdense.files import locked, remove_leftovers, staged
from keras_resdense.progress import progress

#: File of a prepared data set that says what it was made of, and size and SHA-256 of each of its files.
MANIFEST_FILE = "manifest.json"
#: Beginning of the name of the folder in which a data set is prepared.
PREPARING = ".preparing-"
#: Bytes of images in a shard, about, and least shards: so many workers can share the reading.
SHARD_BYTES, LEAST_SHARDS = 128 * 2**20, 16
#: Quality of the JPEGs that shrunk images become; their colours are not subsampled.
QUALITY = 95
_PLAN_FILE = "plan.json"
_NAME = "images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """What goes into one file.

    Attributes:
        path: Of the file.
        files: Path, bytes, class and plainness of each image.
        class_names: In the order of the classes' numbers.
        image_size: See `prepare`.
    """

    path: str
    files: tuple[tuple[str, int, int, bool], ...]
    class_names: tuple[str, ...]
    image_size: int

    @property
    def done(self) -> Path:
        """File of its size and SHA-256, which is written last."""
        path = Path(self.path)
        return path.with_name(f"done-{path.name}.json")

    def __post_init__(self) -> None:
        require_whole(self, "image_size", least=0)


def prepare(
    folder: str | Path,
    to: str | Path,
    image_size: int = 0,
    on_bad_image: str = "error",
    beam: Sequence[str] | None = None,
) -> Path:
    """Prepares a folder of images for training: `train --data TO` starts with it at once.

    Images that TensorFlow reads as Pillow does are taken over byte by byte. All others become PNGs of the same pixels.
    A preparation that was stopped goes on when it is called again with the same folder and options.

    Args:
        folder: The images, one folder for each class, see `keras_resdense.data.folder`. Nothing in it is changed.
        to: The data set's folder, which must not be there yet.
        image_size: Shorter side that larger images are shrunk to, in pixels; 0 for none. A shrunk image becomes a
            JPEG of quality 95.
        on_bad_image: "error" to list everything bad and stop, "skip" to list it, in the manifest, too, and go on.
        beam: Options of Apache Beam, such as `["--runner=FlinkRunner"]`, to have its workers write the shards; they
            must see both folders. Default are the threads of this process.

    Returns:
        The data set's folder.

    Raises:
        ValueError: If there is something at `to`, another process prepares it, or images are bad or have changed.
        OSError: If it cannot be written. What is written so far is kept for the next call.
    """
    folder, to = Path(folder), Path(to)
    if to.exists():
        raise ValueError(f"{to} exists: choose another folder.")
    found = find_images(folder, on_bad_image)
    staging = to.parent / f"{PREPARING}{to.name}"
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, f"Another process prepares {to}: wait for it, or choose another folder."):
        remove_leftovers(staging)
        splits = {"train": found.train, "validation": found.test}
        shards = {
            split: _shards(staging, split, files, found.class_names, image_size) for split, files in splits.items()
        }
        _keep_what_fits(staging, [shard for part in shards.values() for shard in part])
        _write_all([shard for part in shards.values() for shard in part], beam)
        _describe(staging, shards, found.class_names)
        manifest = {
            "folder": str(folder.resolve()),
            "image_size": image_size,
            "images": {split: len(files.paths) for split, files in splits.items()},
            "class_names": found.class_names,
            "class_counts": {
                split: np.bincount(files.labels, minlength=len(found.class_names)).tolist()
                for split, files in splits.items()
            },
            "bad_images": found.faults,
            "files": _fingerprints(staging, shards),
        }
        with staged(staging / MANIFEST_FILE) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        for leftover in (staging / _PLAN_FILE, *staging.glob("done-*.json")):
            leftover.unlink()
        os.rename(staging, to)
    return to


def check_prepared(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a prepared data set; an empty one if TFDS has made it.

    Raises:
        ValueError: If files are missing or have another size than when it was made.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return {}
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files = manifest["files"]
    wrong = [
        name
        for name, known in files.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != known["bytes"]
    ]
    if wrong:
        raise ValueError(
            f"{folder} is not whole: {', '.join(wrong[:5])} and {len(wrong)} files in all differ from its"
            f" {MANIFEST_FILE}. Copy or prepare it again."
        )
    return manifest


def write_shard(shard: Shard) -> int:
    """Writes a shard, unless it is there; returns its number of images."""
    import tensorflow as tf

    if shard.done.exists():
        return len(shard.files)
    digest = hashlib.sha256()
    try:
        with staged(Path(shard.path)) as temporary:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for path, size, label, plain in shard.files:
                    writer.write(_record(shard, path, size, label, plain))
            with open(temporary, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
            written = temporary.stat().st_size
    except tf.errors.OpError as error:  # such as a full disk
        raise OSError(
            f"{shard.path} cannot be written ({error.message}). The same command resumes from here."
        ) from error
    with staged(shard.done) as temporary:
        temporary.write_text(json.dumps({"bytes": written, "sha256": digest.hexdigest()}))
    return len(shard.files)


def _record(shard: Shard, path: str, size: int, label: int, plain: bool) -> bytes:
    import tensorflow as tf

    encoded = read_file(path)
    if len(encoded) != size:
        raise ValueError(f"{path} has changed since it was checked: start again.")
    image = io.BytesIO(_encoded(encoded, plain, shard.image_size))
    record = _features(shard.class_names).serialize_example({"image": image, "label": label})
    # Protocol buffers order their fields differently in each process; sorted ones make the files reproducible.
    return tf.train.Example.FromString(record).SerializeToString(deterministic=True)


def _encoded(encoded: bytes, plain: bool, image_size: int) -> bytes:
    """Returns an image as it is stored."""
    from PIL import Image

    taken_over = plain or is_plain_png(encoded)
    if taken_over and not image_size:
        return encoded
    image = Image.fromarray(decode_fast(encoded))
    written = io.BytesIO()
    if image_size and min(image.size) > image_size:
        scale = image_size / min(image.size)
        size = [max(image_size, round(side * scale)) for side in image.size]
        image.resize(size, Image.Resampling.BICUBIC).save(written, "JPEG", quality=QUALITY, subsampling=0)
    elif taken_over:
        return encoded
    else:
        image.save(written, "PNG")
    return written.getvalue()


@functools.cache
def _features(class_names: tuple[str, ...]):
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=class_names)}
    )


def _shards(staging: Path, split: str, files: Files, class_names: tuple[str, ...], image_size: int) -> list[Shard]:
    """Deals the images out in an order that is random, and always the same."""
    count = len(files.paths)
    number = min(count, max(LEAST_SHARDS, -(-int(files.sizes.sum()) // SHARD_BYTES)))
    order = np.random.default_rng(0).permutation(count)
    return [
        Shard(
            path=str(staging / f"{_NAME}-{split}.tfrecord-{index:05}-of-{number:05}"),
            files=tuple(
                (files.paths[n], int(files.sizes[n]), int(files.labels[n]), bool(files.plain[n])) for n in part
            ),
            class_names=class_names,
            image_size=image_size,
        )
        for index, part in enumerate(np.array_split(order, number))
    ]


def _keep_what_fits(staging: Path, shards: list[Shard]) -> None:
    """Removes what an earlier call has written, if that was for other images or options."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(repr(shard).encode("utf-8", "surrogateescape"))
    plan, path = digest.hexdigest(), staging / _PLAN_FILE
    if path.exists() and path.read_text() == plan:
        return
    for old in staging.iterdir():
        old.unlink() if old.is_file() else shutil.rmtree(old)
    with staged(path) as temporary:
        temporary.write_text(plan)


def _write_all(shards: list[Shard], beam: Sequence[str] | None) -> None:
    if beam is not None:
        return _write_by_beam(shards, beam)
    left = [shard for shard in shards if not shard.done.exists()]
    with progress("Preparing images", sum(len(shard.files) for shard in left)) as advance:
        pool = ThreadPoolExecutor()
        try:
            for count in pool.map(write_shard, left):
                advance(count)
        finally:
            pool.shutdown(cancel_futures=True)


def _write_by_beam(shards: list[Shard], options: Sequence[str]) -> None:
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError("Apache Beam is not installed: install keras-resdense[beam].") from error
    with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = pipeline | apache_beam.Create(shards) | apache_beam.Reshuffle() | apache_beam.Map(write_shard)


def _describe(staging: Path, shards: dict[str, list[Shard]], class_names: tuple[str, ...]) -> None:
    """Writes what TFDS must know to read the files."""
    import tensorflow_datasets as tfds

    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(shard.files) for shard in part],
            num_bytes=sum(json.loads(shard.done.read_text())["bytes"] for shard in part),
        )
        for split, part in shards.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=staging,
        features=_features(class_names),
        split_infos=infos,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
    )


def _fingerprints(staging: Path, shards: dict[str, list[Shard]]) -> dict[str, dict]:
    files = {Path(shard.path).name: json.loads(shard.done.read_text()) for part in shards.values() for shard in part}
    for path in sorted(staging.iterdir()):
        if (
            path.is_file()
            and path.name not in (_PLAN_FILE, MANIFEST_FILE, *files)
            and not path.name.startswith("done-")
        ):
            content = path.read_bytes()
            files[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return files
