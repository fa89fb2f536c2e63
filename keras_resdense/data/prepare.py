"""Prepares a folder of images once: checks, shuffles and writes them to sharded TFRecord files for TFDS.

Each shard is written whole or not at all, so that an interrupted preparation can resume. The data set gets its name
when it is complete.
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

from keras_resdense.checks import require_packages, require_whole
from keras_resdense.data.checking import decode_fast, read_file
from keras_resdense.data.decoding import is_plain_png
from keras_resdense.data.folder import Files, find_images
from keras_resdense.files import locked, remove_leftovers, sha256, staged, write_text
from keras_resdense.progress import progress

#: File of a prepared data set with its source, and the size and SHA-256 of each of its files.
MANIFEST_FILE = "manifest.json"
#: Beginning of the name of the folder in which a data set is prepared.
PREPARING = ".preparing-"
#: Approximate bytes of images in a shard, and the least number of shards, which limits how many workers can share them.
SHARD_BYTES, LEAST_SHARDS = 128 * 2**20, 16
#: Quality of shrunk images, which become JPEGs without chroma subsampling.
QUALITY = 95
_PLAN_FILE = "plan.json"
_NAME = "images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """The images of one file.

    Attributes:
        path: Path of the file.
        files: Path, bytes, class and plainness of each image.
        class_names: Names of the classes in the order of their indices.
        image_size: See `prepare`.
    """

    path: str
    files: tuple[tuple[str, int, int, bool], ...]
    class_names: tuple[str, ...]
    image_size: int

    @property
    def done(self) -> Path:
        """The file with its size and SHA-256, which is written last."""
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

    Images that TensorFlow decodes to the same pixels as Pillow are copied byte by byte. All others become PNGs of the
    same pixels. A call with the same folder and options resumes an interrupted preparation.

    Args:
        folder: The images, one folder for each class, see `keras_resdense.data.folder`. Nothing in it is changed.
        to: Folder of the new data set, which must not exist yet.
        image_size: Shorter side that larger images are shrunk to, in pixels; 0 to keep their size. A shrunk image
            becomes a JPEG of quality 95.
        on_bad_image: "error" to list all bad files and stop, "skip" to list them, also in the manifest, and continue.
        beam: Options of Apache Beam, such as `["--runner=FlinkRunner"]`, whose workers then write the shards; they
            must have access to both folders. Default: threads of this process.

    Returns:
        The data set's folder.

    Raises:
        ValueError: If `to` exists, another process prepares it, images are bad or have changed, or Beam is missing.
        OSError: If it cannot be written. What is written so far is kept for the next call.
    """
    folder, to = Path(folder), Path(to)
    if to.exists():
        raise ValueError(f"{to} exists: choose another folder.")
    if beam is not None:
        require_packages("--beam", ["apache_beam"])
    found = find_images(folder, on_bad_image)
    staging = to.parent / f"{PREPARING}{to.name}"
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, f"Another process prepares {to}: wait for it, or choose another folder."):
        remove_leftovers(staging)
        splits = {"train": found.train, "validation": found.test}
        shards = {
            split: _shards(staging, split, files, found.class_names, image_size) for split, files in splits.items()
        }
        every = [shard for part in shards.values() for shard in part]
        _keep_what_fits(staging, every)
        _write_all(every, beam)
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
            "files": _fingerprints(staging, every),
        }
        write_text(staging / MANIFEST_FILE, json.dumps(manifest, indent=2))
        for leftover in (staging / _PLAN_FILE, *staging.glob("done-*.json")):
            leftover.unlink()
        os.rename(staging, to)
    return to


def check_prepared(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a prepared data set, or an empty one if TFDS made the data set.

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
            f"{folder} is incomplete: {len(wrong)} files, such as {', '.join(wrong[:5])}, differ from its"
            f" {MANIFEST_FILE}. Copy or prepare it again."
        )
    return manifest


def write_shard(shard: Shard) -> int:
    """Writes a shard, unless it exists, and returns its number of images."""
    import tensorflow as tf

    if shard.done.exists():
        return len(shard.files)
    try:
        with staged(Path(shard.path)) as temporary:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for path, size, label, plain in shard.files:
                    writer.write(_record(shard, path, size, label, plain))
            written = _fingerprint(temporary)
    except tf.errors.OpError as error:  # such as a full disk
        raise OSError(
            f"{shard.path} cannot be written ({error.message}). The same command resumes from here."
        ) from error
    write_text(shard.done, json.dumps(written))
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
    """Distributes the images to shards in a random order that is always the same."""
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
    """Removes the files of an earlier call for other images or options."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(repr(shard).encode("utf-8", "surrogateescape"))
    plan, path = digest.hexdigest(), staging / _PLAN_FILE
    if path.exists() and path.read_text() == plan:
        return
    for old in staging.iterdir():
        old.unlink() if old.is_file() else shutil.rmtree(old)
    write_text(path, plan)


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
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = pipeline | apache_beam.Create(shards) | apache_beam.Reshuffle() | apache_beam.Map(write_shard)


def _describe(staging: Path, shards: dict[str, list[Shard]], class_names: tuple[str, ...]) -> None:
    """Writes TFDS's description of the files."""
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


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _fingerprints(staging: Path, shards: list[Shard]) -> dict[str, dict]:
    files = {Path(shard.path).name: json.loads(shard.done.read_text()) for shard in shards}
    for path in sorted(staging.iterdir()):
        if (
            path.is_file()
            and path.name not in (_PLAN_FILE, MANIFEST_FILE, *files)
            and not path.name.startswith("done-")
        ):
            files[path.name] = _fingerprint(path)
    return files
