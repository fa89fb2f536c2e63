"""Transfer learning: a backbone that has learned five kinds of clothes helps to learn five others.

Trains a ResNet-20 on the 30,000 images of T-shirts, trousers, coats, sandals and sneakers of Fashion-MNIST. Then it
learns pullovers, dresses, shirts, bags and boots from 20 images each: with a frozen backbone, with the last stage
fine-tuned, and from scratch. Prints the mean accuracy of three seeds on the 5,000 test images of the new classes.

    python examples/transfer_learning.py [--epochs 3] [--seeds 3]

TFDS downloads Fashion-MNIST if necessary. Takes about 15 minutes on two cores.
"""

import argparse

import keras
import numpy as np
import tensorflow_datasets as tfds

import keras_resdense

KNOWN, NEW = [0, 1, 4, 5, 7], [2, 3, 6, 8, 9]
LABELS_PER_CLASS = 20
FEW_EPOCHS = 40


def load(split: str, classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = tfds.as_numpy(tfds.load("fashion_mnist", split=split, batch_size=-1, as_supervised=True))
    chosen = np.isin(labels, classes)
    return images[chosen].astype("float32"), np.searchsorted(classes, labels[chosen])


def classifier() -> keras.Model:
    """Builds a ResNet-20 with a head that reads the spatial mean of each stage's last feature map."""
    network = keras_resdense.ResNet20(include_top=False, input_shape=(28, 28, 1), include_preprocessing=True)
    maps = keras_resdense.feature_extractor(network).output.values()
    features = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(found) for found in maps])
    features = keras_resdense.BatchNormalization()(features)
    return keras.Model(network.input, keras.layers.Dense(5, activation="softmax")(features))


def fit(model: keras.Model, images: np.ndarray, labels: np.ndarray, epochs: int, rate: float) -> None:
    batch = min(128, len(images) // 5)
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * (len(images) // batch))
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, batch_size=batch, epochs=epochs, verbose=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="epochs on the known classes; default %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; default %(default)s")
    options = parser.parse_args()
    known, (images, labels), test = load("train", KNOWN), load("train", NEW), load("test", NEW)
    accuracies = {"from scratch": [], "frozen backbone": [], "last stage fine-tuned": []}

    def note(name: str, model: keras.Model) -> None:
        accuracies[name].append(model.evaluate(*test, verbose=0)[1])
        print(f"seed {seed}, {name}: {accuracies[name][-1]:.1%}", flush=True)

    for seed in range(options.seeds):
        keras.utils.set_random_seed(seed)
        draw = np.random.default_rng(seed).choice
        few = np.concatenate([draw(np.flatnonzero(labels == k), LABELS_PER_CLASS, False) for k in range(len(NEW))])
        scratch, model = classifier(), classifier()
        # The same number of epochs as for the frozen and the fine-tuned network together.
        fit(scratch, images[few], labels[few], 2 * FEW_EPOCHS, 0.1)
        note("from scratch", scratch)

        fit(model, *known, options.epochs, 0.1)
        head = model.layers[-1]
        head.set_weights([np.zeros(weight.shape) for weight in head.get_weights()])
        keras_resdense.freeze(model, "stage4")
        fit(model, images[few], labels[few], FEW_EPOCHS, 0.1)
        note("frozen backbone", model)
        keras_resdense.freeze(model, "stage3")
        fit(model, images[few], labels[few], FEW_EPOCHS, 0.03)
        note("last stage fine-tuned", model)
    for name, values in accuracies.items():
        print(f"{name}: {np.mean(values):.1%} (from {min(values):.1%} to {max(values):.1%})")


if __name__ == "__main__":
    main()
