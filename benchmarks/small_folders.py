"""Compares a training that chooses its recipe with plain `fit` and Adam at equal time, on small folders of images.

    python benchmarks/small_folders.py [STAMPS]

For each data set and seed, `keras-resdense train --data FOLDER` chooses network, size and recipe. Its training takes
some processor time, from the images in the folder to the trained weights. Plain `fit` then gets as much: with a
ResNet-18, and with the network that the first training chose. It does what the guides of Keras do, with
`image_dataset_from_directory`, pixels scaled to 0–1, batches of 32 images in memory, Adam with its defaults and no
augmentation, and it does not stop to evaluate. All learn from the folder `train` and are measured on `test`, which
none has seen. Each training has its own process. Imports and exports do not count.

`--data` and `--seeds` run a part of the comparison. The other rows of the JSON file are kept.

Time is the processor time of all threads of the process, so other work on the machine changes it little.

Fashion-MNIST comes through TFDS and the digits from scikit-learn. STAMPS is the folder `usr/share/tuxpaint/stamps` of
Debian's package tuxpaint-stamps-default; its five folders with at least 60 PNG files are the classes. Without it, the
stamps are left out.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from pages import add_json, load, replace, save, table
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score

import keras_resdense
from keras_resdense.data.decoding import decode_image
from keras_resdense.data.folder import image_files
from keras_resdense.data.sources import load_data
from keras_resdense.training import train
from keras_resdense.training.choosing import choose
from keras_resdense.training.recipes import Settings

SEEDS = (0, 1, 2)
OURS, PLAIN, SAME = "chosen", "plain ResNet-18", "plain, same network"
#: Number of test images of Fashion-MNIST.
TESTED = 2000
STAMPS = ("animals", "food", "seasonal", "symbols", "town")
#: Side of ResNet-18's smallest images. Smaller ones are enlarged, because the network divides their side by 32.
LEAST = 32


def write(folder: Path, images: list[np.ndarray], labels: np.ndarray, names: list[str]) -> None:
    """Writes images as PNG files in a folder for each class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / names[label].replace("/", " or ") / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def fashion(each: int) -> Callable[[Path, Path], None]:
    """Returns a function that writes some training images of each class, and a quarter as many for validation."""

    def write_fashion(folder: Path, stamps: Path) -> None:
        data, held_out = load_data("fashion_mnist"), -(-each // 4)
        pixels, labels, _ = data.train.read(np.arange(data.train.count))
        pixels, labels = pixels.numpy()[..., 0], labels.numpy()
        of_class = [np.flatnonzero(labels == label)[: each + held_out] for label in range(10)]
        for split, part in {"train": slice(0, each), "val": slice(each, None)}.items():
            chosen = np.concatenate([found[part] for found in of_class])
            write(folder / split, pixels[chosen], labels[chosen], data.class_names)
        pixels, labels, _ = data.test.read(np.arange(TESTED))
        write(folder / "test", pixels.numpy()[..., 0], labels.numpy(), data.class_names)

    return write_fashion


def write_split(folder: Path, images: list[np.ndarray], labels: np.ndarray, names: list[str], shares: tuple) -> None:
    """Writes random shares of the images for training and validation, and the rest for testing."""
    order = np.random.default_rng(0).permutation(len(images))
    borders = np.round(np.cumsum((0, *shares, 1 - sum(shares))) * len(images)).astype(int)
    for split, first, last in zip(("train", "val", "test"), borders, borders[1:], strict=False):
        part = order[first:last]
        write(folder / split, [images[number] for number in part], labels[part], names)


def digits(folder: Path, stamps: Path) -> None:
    found = load_digits()
    pixels = (found.images * 255 / 16).round().astype("uint8")
    write_split(folder, pixels, found.target, list(map(str, found.target_names)), (400 / 1797, 100 / 1797))


def stamps(folder: Path, stamps: Path) -> None:
    files = [(path, label) for label, name in enumerate(STAMPS) for path in sorted((stamps / name).rglob("*.png"))]
    images = [decode_image(path.read_bytes()) for path, _ in files]
    write_split(folder, images, np.array([label for _, label in files]), STAMPS, (0.5, 0.1))


DATA = {f"Fashion-MNIST, {each:,} a class": fashion(each) for each in (10, 100, 1000)} | {
    "stamps, 5 classes": stamps,
    "digits, 40 a class": digits,
}


def read_labels(folder: Path, names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    files = image_files(folder)
    return files, np.array([names.index(Path(file).parent.name) for file in files])


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    answers = probabilities.argmax(-1)
    return {
        "accuracy": float((answers == labels).mean()),
        "mean of classes": float(balanced_accuracy_score(labels, answers)),
    }


def train_ours(folder: Path, seed: int, chosen: Callable = choose) -> dict:
    """Trains as the command does, but without exports."""
    # Each process checks the images again, as in a user's first training.
    train.FORMATS = ()
    with tempfile.TemporaryDirectory() as place:
        os.environ["KERAS_HOME"] = place
        start, wall = time.process_time(), time.perf_counter()
        data = load_data(str(folder))
        recipe, found = chosen(data)
        recipe = dataclasses.replace(recipe, data=str(folder))
        run = train.train(recipe, Settings(seed=seed), folder=place)
        seconds, wall = time.process_time() - start, time.perf_counter() - wall
    files, labels = read_labels(folder / "test", data.class_names)
    images = keras_resdense.transform(run.model.image_contract)(
        [decode_image(Path(file).read_bytes()) for file in files]
    )
    side = run.model.input_shape[1]
    return scores(labels, run.model.predict(np.asarray(images), verbose=0)) | {
        "seconds": seconds,
        "wall seconds": wall,
        "network": recipe.model,
        "side": side,
        "recipe": dataclasses.asdict(recipe) | {"data": ""},
        "found": found,
    }


class Stop(keras.callbacks.Callback):
    """Ends a training when this process has had its time."""

    def __init__(self, end: float):
        super().__init__()
        self.end = end
        self.steps = 0

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        self.steps += 1
        if time.process_time() > self.end:
            self.model.stop_training = True
            raise StopIteration


def train_plain(folder: Path, seed: int, network: str, side: int, seconds: float) -> dict:
    """Trains as the guides of Keras do."""
    wall, stop = time.perf_counter(), Stop(time.process_time() + seconds)
    keras.utils.set_random_seed(seed)

    def images_of(split: str, shuffle: bool):
        return keras.utils.image_dataset_from_directory(
            folder / split, image_size=(side, side), batch_size=32, shuffle=shuffle, seed=seed
        )

    found = images_of("train", True)
    network = keras_resdense.create_model(network, input_shape=(side, side, 3), classes=len(found.class_names))
    model = keras.Sequential([keras.layers.Rescaling(1 / 255), network])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    try:
        batches = found.unbatch().cache().shuffle(1000).batch(32).prefetch(2)
        model.fit(batches, epochs=10**6, callbacks=[stop], verbose=0)
    except StopIteration:
        pass
    wall = time.perf_counter() - wall
    _, labels = read_labels(folder / "test", tuple(found.class_names))
    probabilities = model.predict(images_of("test", False), verbose=0)
    return scores(labels, probabilities) | {"seconds": seconds, "wall seconds": wall, "steps": stop.steps}


def alone(**arguments) -> dict:
    """Runs one training in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments} failed:\n{done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])


def contest(folder: Path, seed: int) -> dict[str, dict]:
    ours = alone(folder=str(folder), seed=seed)
    common = {"folder": str(folder), "seed": seed, "seconds": ours["seconds"]}
    plain = {"network": "resnet18", "side": max(LEAST, ours["side"])}
    same = {name: ours[name] for name in plain}
    found = alone(**common, **plain)
    return {OURS: ours, PLAIN: found, SAME: found if same == plain else alone(**common, **same)}


def tables(rows: list[dict]) -> dict[str, str]:
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        found = [row for row in rows if row["data"] == data]
        first = found[0][OURS]
        seconds = " / ".join(f"{row[OURS]['seconds']:.0f}" for row in found)
        lines.append((data, f"{first['network']}, {first['side']} px", seconds, *cells(found, "accuracy")))
        if first["recipe"]["balance"]:
            lines.append((f"{data}, mean of classes", "", "", *cells(found, "mean of classes")))
    header = ("images", "network", "processor time, s", f"{OURS}, %", f"{PLAIN}, %", f"{SAME}, %")
    return {"small_folders": table(header, lines, words=2)}


def cells(rows: list[dict], score: str) -> list[str]:
    """Returns the scores of each contestant for all seeds, the best in bold."""
    reached = {name: [100 * row[name][score] for row in rows] for name in (OURS, PLAIN, SAME)}
    best = max(reached, key=lambda name: statistics.mean(reached[name]))
    texts = {name: " / ".join(f"{value:.1f}" for value in values) for name, values in reached.items()}
    return [f"**{text}**" if name == best else text for name, text in texts.items()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("stamps", type=Path, nargs="?", help="folder of stamps")
    options.add_argument("--data", nargs="+", choices=DATA, help="default all")
    options.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    add_json(options, __file__)
    options.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.one:
        one = options.one | {"folder": Path(options.one["folder"])}
        print("\n" + json.dumps(train_plain(**one) if "network" in one else train_ours(**one)))
        return
    rows = load(options.json, [])
    for name in options.data or [name for name in DATA if options.stamps or DATA[name] is not stamps]:
        with tempfile.TemporaryDirectory() as folder:
            DATA[name](Path(folder), options.stamps)
            for seed in options.seeds:
                row = {"data": name, "seed": seed} | contest(Path(folder), seed)
                print(tables([row])["small_folders"], flush=True)
                rows = replace(rows, row, "data", "seed")
                rows.sort(key=lambda row: (list(DATA).index(row["data"]), row["seed"]))
                save(options.json, rows)


if __name__ == "__main__":
    main()
