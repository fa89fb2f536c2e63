"""A folder of images: `root/class/*.jpg`, or `root/train/class/*.jpg` beside `root/val/class/*.jpg`.

Class names may be in any script, and folders below a class belong to it. All images become 8-bit RGB:
grey, palette, CMYK and 16-bit images are converted, transparent ones are blended with white, the EXIF orientation is
applied, and only the first frame of an animation is used.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from keras_resdense.data.checking import Checked, check_images
from keras_resdense.data.decoding import SUFFIXES, decode_image
from keras_resdense.data.encoded import open_encoded
from keras_resdense.data.examples import Examples, ImageData, in_memory, split_stratified
from keras_resdense.files import staged

#: Names of the folder of held-out images, in the order of preference.
TEST_FOLDERS = ("val", "valid", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Image files that passed the check.

    Attributes:
        paths: Paths of the files.
        labels: Indices of their classes `(files,)`.
        sizes: Sizes in bytes `(files,)`.
        plain: Whether TensorFlow decodes them to the same pixels as Pillow, see `Checked`.
    """

    paths: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    plain: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The contents of a folder of images.

    Attributes:
        class_names: Names of the classes in the order of their indices.
        train: Training files.
        test: Held-out files.
        faults: A line for each bad file or folder.
    """

    class_names: tuple[str, ...]
    train: Files
    test: Files
    faults: tuple[str, ...]


def load_folder(root: Path, on_bad_image: str = "error", split: Path | None = None) -> ImageData:
    """Loads a folder of images, see `find_images`, or the images that an earlier split lists."""
    found = _find_again(root, split) if split else find_images(root, on_bad_image)
    used = [*found.train.paths, *found.test.paths]
    sizes = np.concatenate([found.train.sizes, found.test.sizes])

    return ImageData(
        name=root.resolve().name,
        train=_examples(found.train),
        test=_examples(found.test),
        class_names=found.class_names,
        image_shape=(None, None, 3),
        contents=_contents(root, found),
        recheck=lambda: _check_again(used, sizes, root)[1],
        write_split=lambda path: _write_split(path, root, found),
    )


def find_images(root: Path, on_bad_image: str = "error") -> ImageFolder:
    """Finds and checks all images of a folder, which is not changed.

    Args:
        root: The folder.
        on_bad_image: "error" to list all bad files and stop, "skip" to list them and leave them out.

    Raises:
        ValueError: If there are no images to train on, or there are bad files and `on_bad_image` is "error".
    """
    has_splits = _has_splits(root)
    held_out = next((root / name for name in TEST_FOLDERS if has_splits and (root / name).is_dir()), None)
    train_root = root / "train" if has_splits else root
    train, faults = _find(train_root)
    test, more = _find(held_out) if held_out else ({}, [])
    paths = [path for found in (train, test) for files in found.values() for path in files]
    checked = check_images(paths, root)
    bad = dict(checked.faults)
    if not held_out:
        bad |= _alone(train, paths, bad)
    faults = (*faults, *more, *(f"{_printable(paths[n])}: {bad[n]}" for n in sorted(bad)))
    if faults:
        plural = "s" * (len(faults) > 1)
        report = f"{len(faults)} bad file{plural} or folder{plural} in {root}:\n  " + "\n  ".join(faults)
        if on_bad_image == "error":
            raise ValueError(f"{report}\nRepair or remove them, or leave them out with --on-bad-image skip.")
        print(report)

    classes = [name for found in (train, test) for name, files in found.items() for _ in files]
    good, tested = np.ones(len(paths), bool), np.arange(len(paths)) >= sum(map(len, train.values()))
    good[list(bad)] = False
    names = tuple(sorted({classes[number] for number in np.flatnonzero(good & ~tested)}))
    if len(names) < 2:
        raise ValueError(_too_few_classes(train_root, names))
    if strange := sorted(test.keys() - set(names)):
        raise ValueError(f"{held_out} has classes that {train_root} lacks: {', '.join(strange)}.")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers.get(name, -1) for name in classes])
    by_class = np.argsort(labels, kind="stable")
    parts = [by_class[(good & (tested == part))[by_class]] for part in (False, True)]
    if not held_out:
        files = parts[0]
        parts = [files[part] for part in split_stratified(labels[files])]
        print(f"The same {len(parts[1]):,} of {len(files):,} images are always held out, an equal share of each class.")
    elif not len(parts[1]):
        raise ValueError(f"{held_out} has no images to test on.")
    train, test = (
        Files(paths=[paths[n] for n in part], labels=labels[part], sizes=checked.sizes[part], plain=checked.plain[part])
        for part in parts
    )
    return ImageFolder(class_names=names, train=train, test=test, faults=faults)


def _check_again(paths: list[str], sizes: np.ndarray, root: Path) -> tuple[Checked, list[str]]:
    """Checks files whose sizes are known, and returns a line for each that has changed or cannot be read."""
    now = check_images(paths, root)
    bad = dict.fromkeys(np.flatnonzero(now.sizes != sizes).tolist(), "another size than before") | now.faults
    return now, [f"{_printable(paths[n])}: {bad[n]}" for n in sorted(bad)]


def _write_split(path: Path, root: Path, found: ImageFolder) -> None:
    parts = {
        use: [
            (os.path.relpath(name, root), int(label), int(size))
            for name, label, size in zip(files.paths, files.labels, files.sizes, strict=True)
        ]
        for use, files in (("train", found.train), ("test", found.test))
    }
    with staged(path) as temporary, gzip.open(temporary, "wt", encoding="ascii") as file:
        json.dump({"class_names": found.class_names} | parts, file)


def _find_again(root: Path, split: Path) -> ImageFolder:
    """Finds the images of a recorded split.

    Raises:
        ValueError: If some of them are missing or have changed, or the file is damaged.
    """
    try:
        with gzip.open(split, "rt", encoding="ascii") as file:
            kept = json.load(file)
        rows = [*kept["train"], *kept["test"]]
        paths = [os.path.join(root, path) for path, _, _ in rows]
        labels, sizes = (np.array([row[n] for row in rows], "int64") for n in (1, 2))
        class_names = tuple(kept["class_names"])
        if not set(labels.tolist()) <= set(range(len(class_names))):
            raise ValueError("it has labels without a class name")
    except (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, zlib.error) as error:
        raise ValueError(f"{split} is damaged ({error}), so it is not known which images were held out.") from error
    checked, faults = _check_again(paths, sizes, root)
    if faults:
        listed = "\n  ".join(faults)
        raise ValueError(f"{len(faults)} images of the split in {split} have changed:\n  {listed}\nPut them back.")
    train, test = (
        Files(paths=paths[part], labels=labels[part], sizes=checked.sizes[part], plain=checked.plain[part])
        for part in (slice(len(kept["train"])), slice(len(kept["train"]), None))
    )
    return ImageFolder(class_names=class_names, train=train, test=test, faults=())


def _too_few_classes(root: Path, names: tuple[str, ...]) -> str:
    """Describes the expected layout of a folder, and suggests its parent if the folder is a class itself."""
    beside = [path for path in root.resolve().parent.iterdir() if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]
    classes = [path for path in beside if any(file.suffix.lower() in SUFFIXES for file in path.iterdir())]
    meant = f" Or did you mean {root.parent}/?" if root.resolve() in classes and len(classes) > 1 else ""
    found = f"images of one class only, {names[0]}" if names else "no folders of images"
    return f"{root} has {found}. Make a folder in it for each class, at least two: {root}/cat, {root}/dog.{meant}"


def image_files(folder: str | Path) -> list[str]:
    """Returns the images in a folder and its subfolders, by the same rules as in training.

    Other files with the suffix of an image, such as pipes, are included, so that reading them raises an error.
    """
    faults: dict[str, str] = {}
    files = list(_walk(os.fspath(folder), faults))
    unreadable = [path for path in faults if os.path.splitext(path)[1].lower() in SUFFIXES]
    return sorted([*files, *unreadable], key=lambda path: path.split(os.sep))


def _has_splits(root: Path) -> bool:
    """Returns whether a folder holds `train` and other splits instead of classes.

    Raises:
        ValueError: If it could be either.
    """
    train = root / "train"
    if not train.is_dir():
        return False
    known = ("train", *TEST_FOLDERS)
    others = [
        folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in known and not folder.name.startswith(".") and image_files(folder)
    ]
    if not others:
        return True
    if not any(folder.is_dir() and image_files(folder) for folder in train.iterdir()):
        return False
    beside = ", ".join(_printable(folder.name) for folder in others)
    raise ValueError(
        f"{root} has a folder 'train' with folders of images, and images in {beside} beside it. If train is a class,"
        f" rename it. If it is a split, move the others out: only {', '.join(TEST_FOLDERS)} may stand beside it."
    )


def _alone(found: dict[str, list[str]], paths: list[str], bad: dict[int, str]) -> dict[int, str]:
    """Returns the images that are the only good one of their class, which cannot be split."""
    good = {path: number for number, path in enumerate(paths) if number not in bad}
    classes = ([good[path] for path in files if path in good] for files in found.values())
    return {numbers[0]: "the only image of its class; two are needed" for numbers in classes if len(numbers) == 1}


def _contents(root: Path, found: ImageFolder) -> dict[str, str]:
    """Describes the files of each class and split, and hashes their list."""
    contents, listed = {}, hashlib.sha256()

    @functools.cache
    def inside(place: str) -> str:
        return os.path.join(os.path.relpath(place, root), "")

    for use, files in (("to train on", found.train), ("held out", found.test)):
        for path, label, size in zip(files.paths, files.labels.tolist(), files.sizes.tolist(), strict=True):
            place, _, file = path.rpartition(os.sep)
            entry = f"\0{use}\0{found.class_names[label]}\0{size}\0".encode()
            listed.update(entry + os.fsencode(f"{inside(place)}{file}"))
        counts, volumes = np.bincount(files.labels), np.bincount(files.labels, files.sizes)
        for label in np.flatnonzero(counts):
            described = f"{counts[label]} images of {volumes[label]:.0f} bytes"
            contents[f"{found.class_names[label]}, {use}"] = described
    return contents | {"list of files": listed.hexdigest()}


def _find(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the files of each class in a fixed order, and what is wrong with the folders."""
    found: dict[str, list[str]] = {}
    faults: dict[str, str] = {}
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        files = sorted(_walk(str(folder), faults), key=lambda path: path.split(os.sep))
        name = unicodedata.normalize("NFC", _printable(folder.name))
        if not files:
            faults[str(folder)] = "a class without images"
        elif name in found:
            faults[str(folder)] = "a class whose name looks like another's"
        else:
            found[name] = files
    return found, [f"{_printable(path)}: {fault}" for path, fault in faults.items()]


def _walk(folder: str, faults: dict[str, str], above: tuple[str, ...] = ()) -> Iterator[str]:
    place = os.path.realpath(folder)
    if place in above:
        faults[folder] = "a link to a folder that it is in"
        return
    with os.scandir(folder) as entries:
        # With millions of files, asking the file system about each one is slow; the directory entry usually knows.
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # For a broken link, the entry itself would raise an error.
            linked = entry.is_symlink()
            if os.path.isdir(entry.path) if linked else entry.is_dir():
                yield from _walk(entry.path, faults, (*above, place))
            elif entry.name.lower().endswith(SUFFIXES):
                if os.path.isfile(entry.path) if linked else entry.is_file():
                    yield entry.path
                else:
                    faults[entry.path] = "not a regular file, or a link to something else"


def _printable(name: Path | str) -> str:
    """Returns a name as one line of text. Bytes that are not text, and line breaks, become �."""
    return "�".join(os.fsencode(name).decode("utf-8", "replace").splitlines())


def _examples(files: Files) -> Examples:
    import tensorflow as tf

    def decode(content) -> np.ndarray:
        # Eagerly, TensorFlow wraps the bytes in an array.
        return decode_image(content if isinstance(content, bytes) else content.item())

    def by_pillow(encoded):
        return tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)

    def opened(file):
        path, size, plain = file
        encoded = tf.io.read_file(path)
        unchanged = tf.strings.length(encoded, "BYTE") == size
        with tf.control_dependencies([tf.debugging.Assert(unchanged, ["A file changed after its check:", path])]):
            return open_encoded(tf.identity(encoded), 3, by_pillow, plain)

    names = np.array([os.fsencode(path) for path in files.paths], object)
    return in_memory((names, files.sizes.astype("int32"), files.plain), files.labels, opened)
