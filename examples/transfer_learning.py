"""Transfer learning: what a backbone learned on five kinds of clothes helps to tell the other five apart.

Trains a ResNet-20 on the 30,000 images of the even classes of Fashion-MNIST (T-shirt, pullover, coat, shirt,
bag), then learns the odd ones (trouser, dress, sandal, sneaker, boot) from 20 images each: with the backbone
frozen, with it fine-tuned, and from scratch. Prints the mean accuracy of three seeds on the 5,000 test images
of the odd classes.

    python examples/transfer_learning.py [--epochs 2] [--seeds 3]

Fashion-MNIST comes through TFDS, which downloads it unless it is there. About ten minutes on two cores.
"""

import argparse

import keras
import numpy as np
import tensorflow_datasets as tfds

import keras_resdense

LABELS_PER_CLASS = 20
FEW_EPOCHS = 40


EVEN, ODD = 0, 1


def load(split: str, parity: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = tfds.as_numpy(tfds.load("fashion_mnist", split=split, batch_size=-1, as_supervised=True))
    chosen = labels % 2 == parity
    return images[chosen].astype("float32"), labels[chosen] // 2


def classifier(backbone: keras.Model) -> keras.Model:
    outputs = keras.layers.Dense(5, activation="softmax", name="head")(backbone.output)
    return keras.Model(backbone.input, outputs)


def fit(model: keras.Model, images: np.ndarray, labels: np.ndarray, epochs: int, rate: float) -> keras.Model:
    batch = min(128, len(images) // 5)
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * (len(images) // batch))
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, batch_size=batch, epochs=epochs, verbose=0)
    return model


def backbone() -> keras.Model:
    return keras_resdense.ResNet20(False, input_shape=(28, 28, 1), pooling="avg", include_preprocessing=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="on the even classes; default %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default %(default)s")
    options = parser.parse_args()
    many, many_labels = load("train", EVEN)
    rest, rest_labels = load("train", ODD)
    test, test_labels = load("test", ODD)
    accuracies = {"from scratch": [], "frozen backbone": [], "fine-tuned": []}
    for seed in range(options.seeds):
        keras.utils.set_random_seed(seed)
        random = np.random.default_rng(seed)
        few = np.concatenate(
            [random.choice(np.flatnonzero(rest_labels == k), LABELS_PER_CLASS, False) for k in range(5)]
        )
        pretrained = backbone()
        fit(classifier(pretrained), many, many_labels, options.epochs, 0.1)
        start = pretrained.get_weights()
        for name in accuracies:
            network = backbone()
            model = classifier(network)
            if name != "from scratch":
                network.set_weights(start)
                keras_resdense.freeze(model, "stage4")
                fit(model, rest[few], rest_labels[few], FEW_EPOCHS, 0.1)
            if name == "fine-tuned":
                keras_resdense.freeze(model, "stage2")
            if name != "frozen backbone":
                fit(model, rest[few], rest_labels[few], FEW_EPOCHS, 0.1 if name == "from scratch" else 0.01)
            accuracies[name].append(model.evaluate(test, test_labels, verbose=0)[1])
            print(f"seed {seed}, {name}: {accuracies[name][-1]:.1%}", flush=True)
    for name, values in accuracies.items():
        print(f"{name}: {np.mean(values):.1%} (from {min(values):.1%} to {max(values):.1%})")


if __name__ == "__main__":
    main()
