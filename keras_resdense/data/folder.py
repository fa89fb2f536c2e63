"""A folder of images: `root/class/*.jpg`, or `root/train/class/*.jpg` beside `root/val/class/*.jpg`.

Names of classes may be in any script; folders below a class belong to it. All images become RGB of 8 bits:
grey, palette, CMYK and 16-bit ones are converted, transparent ones laid on white, those with an EXIF
orientation turned upright, and of animations the first frame is taken.
"""

from __future__ import annotations

import concurrent.futures
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from keras_resdense.data.decoding import SUFFIXES, decode_image
from keras_resdense.data.examples import Examples, ImageData, in_memory, split_stratified

#: Names of the folder of images held out, in the order in which they are looked for.
TEST_FOLDERS = ("val", "valid", "validation", "test")


def load_folder(root: Path, on_bad_image: str = "error") -> ImageData:
    """Loads a folder of images after checking every one of them; nothing in it is changed.

    Args:
        root: The folder.
        on_bad_image: "error" to list everything bad and stop, "skip" to list it and go on without.

    Raises:
        ValueError: If there is nothing to learn from, or anything bad and it is not to be skipped.
    """
    has_splits = (root / "train").is_dir()
    held_out = next((root / name for name in TEST_FOLDERS if has_splits and (root / name).is_dir()), None)
    train_root = root / "train" if has_splits else root
    train, faults = _find(train_root)
    test, more = _find(held_out) if held_out else ({}, [])
    paths = [path for found in (train, test) for files in found.values() for path in files]
    print(f"Checking {len(paths):,} images in {root} …")
    bad = check_images(paths)
    faults = [*faults, *more, *(f"{_printable(path)}: {fault}" for path, fault in bad.items())]
    if faults:
        report = f"{len(faults)} bad files or folders in {root}:\n  " + "\n  ".join(faults)
        if on_bad_image == "error":
            raise ValueError(f"{report}\nMend or remove them, or leave them out with --on-bad-image skip.")
        print(report)
    train, test = (
        {name: [path for path in files if path not in bad] for name, files in found.items()} for found in (train, test)
    )
    names = tuple(sorted(name for name, files in train.items() if files))
    if len(names) < 2:
        raise ValueError(f"{train_root} has images in {len(names)} folders; there must be one folder for each class.")
    if strange := sorted(test.keys() - set(names)):
        raise ValueError(f"{held_out} has classes that {train_root} lacks: {', '.join(strange)}.")
    paths, labels = _flatten(train, names)
    if held_out:
        parts = (paths, labels), _flatten(test, names)
    else:
        parts = [(paths[part], labels[part]) for part in split_stratified(labels)]
        print(f"Held out, always the same: {len(parts[1][1]):,} of {len(labels):,} images, from each class alike.")
    trained, tested = (_examples(*part) for part in parts)
    if not tested.count:
        raise ValueError(f"{held_out} has no images to test on.")
    return ImageData(
        name=root.resolve().name, train=trained, test=tested, class_names=names, image_shape=(None, None, 3)
    )


def check_images(paths: list[Path]) -> dict[Path, str]:
    """Decodes every file as training will do, and says of each bad one what is wrong with it."""

    def fault(path: Path) -> str | None:
        try:
            decode_image(path.read_bytes())
        except (ValueError, OSError) as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return {path: found for path, found in zip(paths, pool.map(fault, paths), strict=True) if found}


def _find(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Returns the files of each class in a fixed order, and what is wrong with the folders."""
    found, faults = {}, []
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        files = sorted(path for path in _walk(folder, faults) if path.suffix.lower() in SUFFIXES)
        name = unicodedata.normalize("NFC", _printable(folder.name))
        if not files:
            faults.append(f"{_printable(folder)}: a class without images")
        elif name in found:
            faults.append(f"{_printable(folder)}: a class whose name looks like another's")
        else:
            found[name] = files
    return found, faults


def _walk(folder: Path, faults: list[str], above: tuple[str, ...] = ()) -> Iterator[Path]:
    place = os.path.realpath(folder)
    if place in above:
        faults.append(f"{_printable(folder)}: a link to a folder that it is in")
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, faults, (*above, place))
        else:
            yield path


def _printable(name: Path | str) -> str:
    """Names of files need not be text: what is not, or would break a line, is shown as �."""
    return "�".join(os.fsencode(name).decode("utf-8", "replace").splitlines())


def _flatten(found: dict[str, list[Path]], names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(os.fsencode(path), number) for number, name in enumerate(names) for path in found.get(name, ())]
    return np.array([path for path, _ in pairs], object), np.array([number for _, number in pairs], "int64")


def _examples(paths: np.ndarray, labels: np.ndarray) -> Examples:
    import tensorflow as tf

    def read(path) -> np.ndarray:
        return decode_image(Path(os.fsdecode(np.asarray(path).item())).read_bytes())

    def decode(path):
        image = tf.numpy_function(read, [path], tf.uint8, stateful=False)
        return tf.ensure_shape(image, (None, None, 3))

    return in_memory(paths, labels, decode)
