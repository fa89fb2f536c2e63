"""A training that chooses its recipe, against plain `fit` with Adam at equal time, on small folders of images.

    python benchmarks/small_folders.py

For each data set and seed: `keras-resdense train --data FOLDER` chooses network, size and recipe. Then the same network
is compiled with `adam` and trained by `fit` on the same images, resized but not augmented, for as many seconds as the
epochs of the first training took. Fashion-MNIST comes through TFDS, the digits from scikit-learn.
"""

import argparse
import csv
import dataclasses
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import keras_resdense
from keras_resdense.data.batches import evaluation_batches
from keras_resdense.data.sources import load_data
from keras_resdense.training import train
from keras_resdense.training.choosing import choose
from keras_resdense.training.recipes import Settings

FOLDER = Path(__file__).parent
SEEDS = (0, 1, 2)


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray, names, split: str) -> None:
    """Writes images `(images, height, width)` as PNG files in a folder for each class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / split / str(names[label]).replace("/", " or ") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def fashion(each: int):
    """Returns a function that writes a folder of so many Fashion-MNIST images of each class, and 2,000 to test on."""

    def write(folder: Path) -> None:
        data = load_data("fashion_mnist")
        pixels, labels, _ = data.train.read(np.arange(data.train.count))
        pixels, labels = pixels.numpy()[..., 0], labels.numpy()
        chosen = np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(10)])
        write_folder(folder, pixels[chosen], labels[chosen], data.class_names, "train")
        pixels, labels, _ = data.test.read(np.arange(2000))
        write_folder(folder, pixels.numpy()[..., 0], labels.numpy(), data.class_names, "val")

    return write


def digits(folder: Path) -> None:
    found = load_digits()
    pixels = (found.images * 255 / 16).round().astype("uint8")
    write_folder(folder, pixels[:400], found.target[:400], found.target_names, "train")
    write_folder(folder, pixels[400:], found.target[400:], found.target_names, "val")


DATA = {f"Fashion-MNIST, {n:,} a class": fashion(n) for n in (10, 100, 1000)} | {"digits, 40 a class": digits}


class Stop(keras.callbacks.Callback):
    """Ends a training after some seconds."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def on_train_begin(self, logs=None):
        self.end = time.perf_counter() + self.seconds

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = time.perf_counter() > self.end
        if self.model.stop_training:
            raise StopIteration


def contest(folder: Path, seed: int) -> dict[str, float]:
    """Returns the accuracies of both, and the seconds that each had."""
    data = load_data(str(folder))
    recipe, words = choose(data)
    recipe = dataclasses.replace(recipe, data=str(folder))
    print(words)
    train.FORMATS = ()
    with tempfile.TemporaryDirectory() as runs:
        run = keras_resdense.train(recipe, Settings(seed=seed), folder=runs)
        with open(run.folder / "history.csv") as file:
            seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    keras.utils.set_random_seed(seed)
    contract, classes = run.model.image_contract, len(data.class_names)
    transform = keras_resdense.transform(contract)
    pixels, labels = zip(*(data.train.read(handle)[:2] for handle in data.train.order(None)), strict=True)
    images = transform([np.asarray(image) for image in pixels])
    plain = keras_resdense.create_model(
        recipe.model, input_shape=images.shape[1:], classes=classes, include_preprocessing=True
    )
    plain.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    try:
        plain.fit(images, np.array(labels), batch_size=32, epochs=10_000, callbacks=[Stop(seconds)], verbose=0)
    except StopIteration:
        pass
    batches, steps = evaluation_batches(data.test, contract, classes)
    right = sum(
        int((plain.predict_on_batch(images).argmax(-1) == targets.argmax(-1))[weights > 0].sum())
        for images, targets, weights in batches.take(steps).as_numpy_iterator()
    )
    return {"chosen": run.accuracy, "plain fit with Adam": right / data.test.count, "seconds": seconds}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    options.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    options.add_argument("--csv", type=Path, default=FOLDER / "small_folders.csv")
    options = options.parse_args()
    rows = []
    for name in options.data:
        with tempfile.TemporaryDirectory() as folder:
            DATA[name](Path(folder))
            for seed in options.seeds:
                rows.append({"data": name, "seed": seed} | contest(Path(folder), seed))
                print(rows[-1], flush=True)
    with open(options.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
