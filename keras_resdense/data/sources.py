"""Images to train on: the embedded digits, any image classification data set of TFDS, or a folder of images.

`Examples` have an order and a function that reads one example. The function does the expensive work and runs in
parallel. The order of an epoch depends only on its key, so a training can resume at any step and use any number of
workers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path

import numpy as np

from keras_resdense.checks import closest
from keras_resdense.data.encoded import open_encoded
from keras_resdense.data.examples import HELD_OUT, Example, Examples, ImageData, in_memory, split_stratified
from keras_resdense.data.folder import load_folder
from keras_resdense.data.prepare import check_prepared
from keras_resdense.servers import find_silent

#: Largest size in bytes of a data set in memory. It is kept as pixels if images have one size and the pixels fit, and
#: encoded otherwise. A larger data set is streamed from its files.
MEMORY_LIMIT = 4 * 2**30
#: Size of the blocks in which examples of a streamed data set are shuffled, and number of files that are read in turn.
#: The order of the files is also shuffled.
SHUFFLE_BLOCK, FILES_AT_ONCE = 4096, 16
#: File of every data set of TFDS.
_TFDS_FILE = "dataset_info.json"


def load_data(
    name: str = "digits", data_dir: str | None = None, on_bad_image: str = "error", split: Path | None = None
) -> ImageData:
    """Loads a data set.

    Args:
        name: "digits", scikit-learn's 1,797 handwritten digits of 8×8 pixels, which need no network; the
            name of an image classification data set of TFDS; a folder of images, see
            `keras_resdense.data.folder`; or the folder of a data set that TFDS or `keras_resdense.prepare` has written.
        data_dir: Folder where TFDS keeps its data sets; default TFDS's own.
        on_bad_image: For a folder: "error" to list all files that are not images and stop, "skip" to list
            them and train without them.
        split: For a folder: file of an earlier run with the split into training and held-out images. Images that were
            added later are left out. Default: a new split.

    Raises:
        ValueError: If the data set is unknown, a folder holds files that are not images, or images of an earlier run's
            split are missing or have changed.
        OSError: If the data set cannot be downloaded.
    """
    if on_bad_image not in ("error", "skip"):
        raise ValueError(f"on_bad_image is {on_bad_image!r}; it must be 'error' or 'skip'.")
    if name == "digits":
        if Path(name).is_dir():
            print(f"{name} is scikit-learn's data set. For the folder of that name, give ./{name} instead.")
        return _digits()
    if (Path(name) / _TFDS_FILE).is_file():
        return _prepared(Path(name))
    if Path(name).is_dir():
        return load_folder(Path(name), on_bad_image, split)
    return _tfds(name, data_dir)


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images[..., None] * (255 / 16)).astype("uint8")
    parts = split_stratified(digits.target)
    train, test = (in_memory(pixels[part], digits.target[part]) for part in parts)
    names = tuple(map(str, digits.target_names))
    contents = {"images to train on": str(train.count), "images held out": str(test.count)}
    return ImageData(
        name="digits", train=train, test=test, class_names=names, image_shape=pixels.shape[1:], contents=contents
    )


def _tfds(name: str, data_dir: str | None) -> ImageData:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(_unknown(name)) from error
    _check_features(name, builder)
    _prepare(builder)
    return _of_builder(name, builder)


def _prepared(folder: Path) -> ImageData:
    import tensorflow_datasets as tfds

    counts = check_prepared(folder).get("class_counts")
    builder = tfds.builder_from_directory(folder)
    _check_features(str(folder), builder)
    data = _of_builder(folder.resolve().name, builder)
    if counts is None:
        return data
    # Counting the classes of a streamed data set would mean reading all its files.
    return dataclasses.replace(data, train=dataclasses.replace(data.train, class_counts=np.array(counts["train"])))


def _check_features(name: str, builder) -> None:
    """Raises a ValueError if a data set is not for image classification."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kind) for key, kind in kinds.items()):
        raise ValueError(f"{name} does not hold images with one class each, but {sorted(features)}.")


def _of_builder(name: str, builder) -> ImageData:
    features, splits = builder.info.features, builder.info.splits
    # The test images of some sets, such as imagenet2012, have no labels, so validation is preferred.
    held_out = next((split for split in ("validation", "test") if split in splits), None)
    load = _held_in_memory if builder.info.dataset_size <= MEMORY_LIMIT else _streamed
    if held_out is None:
        percent = round(100 * (1 - HELD_OUT))
        train, test = load(builder, f"train[:{percent}%]"), load(builder, f"train[{percent}%:]")
        print(f"{name} has no test split, so the last {100 - percent} % of its training images are held out.")
    else:
        train, test = load(builder, "train"), load(builder, held_out)
    height, width, channels = features["image"].shape
    return ImageData(
        name=name,
        train=train,
        test=test,
        class_names=tuple(features["label"].names),
        image_shape=(height, width, channels or 3),
        contents={
            "version": f"{builder.info.full_name}, {builder.info.dataset_size} bytes",
            "images to train on": str(train.count),
            "images held out": f"{test.count} of {held_out or 'train'}",
        },
    )


def _unknown(name: str) -> str:
    """Returns the error for an unknown folder or data set, with similar names."""
    import tensorflow_datasets as tfds

    path = Path(name)
    if path.is_file():
        # If that is the folder of one class, its own error suggests the parent.
        return f"{name!r} is a file. Give the folder of images that it is in: {path.parent}/"
    known = {found: found for found in ("digits", *tfds.list_builders(with_community_datasets=False))}
    if path.parent.is_dir():
        known |= {folder.name.lower(): f"{folder}/" for folder in path.parent.iterdir() if folder.is_dir()}
    return (
        f"There is no folder or data set {name!r}.{closest(path.name, known)} It must be a folder of images, 'digits'"
        " or the name of an image classification data set of TFDS."
    )


def _prepare(builder) -> None:
    """Downloads and prepares a data set of TFDS, unless that is done.

    Raises:
        OSError: If it cannot be downloaded.
        ValueError: If its files must be downloaded by hand.
    """
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.resource import get_dl_fname
    from tensorflow_datasets.core.download.util import DownloadError

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    root = next(folder for folder in builder.data_path.parents if folder.name == builder.name).parent
    urls = {} if builder.data_path.exists() or builder.MANUAL_DOWNLOAD_INSTRUCTIONS else builder.url_infos
    missing = [
        url for url, found in urls.items() if not (root / "downloads" / get_dl_fname(url, found.checksum)).exists()
    ]
    advice = (
        "On a machine with a network, run"
        f" `python -c \"import tensorflow_datasets; tensorflow_datasets.load('{builder.name}')\"`, copy the folder"
        f" {builder.name} that it makes in ~/tensorflow_datasets to {root}, and repeat the command. Without a network,"
        " you can use 'digits' or a folder of images."
    )
    failure = f"{builder.name} is not in {root} yet, and cannot be downloaded"
    if silent := find_silent(missing):
        raise OSError(f"{failure}: {silent} does not answer. {advice}")
    try:
        builder.download_and_prepare()
    except (DownloadError, requests.RequestException) as error:
        raise OSError(f"{failure}: {error}. {advice}") from error
    except AssertionError as error:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        raise ValueError(f"{builder.name} must be downloaded by hand. {error}") from error


def _held_in_memory(builder, split: str) -> Examples:
    import tensorflow_datasets as tfds

    image, count = builder.info.features["image"], builder.info.splits[split].num_examples
    uniform = None not in image.shape and image.np_dtype == np.uint8 and count * math.prod(image.shape) <= MEMORY_LIMIT
    decoders = {} if uniform else {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_dataset(split=split, batch_size=-1, decoders=decoders)

    opened = functools.partial(open_encoded, channels=image.shape[-1] or 3)
    return in_memory(examples["image"], examples["label"], None if uniform else opened)


def _streamed(builder, split: str) -> Examples:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if builder.info.file_format != tfds.core.FileFormat.TFRECORD or split not in builder.info.splits:
        raise ValueError(
            f"{builder.name} is larger than {MEMORY_LIMIT / 2**30:.0f} GiB and has no split {split!r} in TFRecord"
            " files: prepare it with TFDS's default file format and a split 'validation' or 'test'."
        )
    features, fold_in = builder.info.features, tf.random.experimental.stateless_fold_in
    files = [str(path) for path in builder.info.splits[split].filepaths]

    def worker_handles(key, worker, workers):
        mine = tf.random.experimental.stateless_shuffle(files, key)[worker::workers]
        records = tf.data.Dataset.from_tensor_slices(mine).interleave(
            tf.data.TFRecordDataset, cycle_length=FILES_AT_ONCE, block_length=FILES_AT_ONCE
        )

        def shuffled(number, block):
            block = tf.random.experimental.stateless_shuffle(block, fold_in(key, number))
            return tf.data.Dataset.from_tensor_slices(block)

        return records.batch(SHUFFLE_BLOCK).enumerate().flat_map(shuffled)

    def handles(key):
        return tf.data.TFRecordDataset(files) if key is None else worker_handles(key, 0, 1)

    def open_record(record):
        example = features.deserialize_example(record, decoders={"image": tfds.decode.SkipDecoding()})
        shape, part = open_encoded(example["image"], features["image"].shape[-1] or 3)
        # The position of the example in its file is unknown, so a hash serves as its number.
        number = tf.strings.to_hash_bucket_fast(record, 2**31)
        return Example(shape=shape, part=part, label=example["label"], number=number)

    count = builder.info.splits[split].num_examples
    return Examples(count=count, handles=handles, open=open_record, files=len(files), worker_handles=worker_handles)
