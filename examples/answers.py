"""Draws pictures for the README and the site: what a trained network answers, where it looks, and how it is built.

    python examples/answers.py

The first picture shows six test images of Fashion-MNIST with the three most probable classes of the committed ResNet-20
and its Grad-CAM (1610.02391). The second shows the network, and the third a photo as three image contracts prepare it.
Takes half a minute on one core. TFDS downloads Fashion-MNIST if necessary.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

import keras_resdense
from keras_resdense import ImageContract
from keras_resdense.data.transform import Transform

RUN = Path(__file__).parent.parent / "saved_models/resnet20_fashion_mnist"
#: Indices of the test images: several classes, and one image that the network is unsure about.
IMAGES = (1, 2, 5, 11, 18, 36)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=Path(__file__).parent / "figures", help="default %(default)s")
    folder = options.parse_args().folder
    data = keras_resdense.load_data("fashion_mnist")
    pixels, labels, _ = data.test.read(np.array(IMAGES))
    transform = keras_resdense.transform(RUN)
    model = keras_resdense.load_model(RUN)
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(transform, model, pixels.numpy(), labels.numpy(), data.class_names)
    figure.savefig(folder / "answers.png", dpi=120)
    keras_resdense.draw_network(model).savefig(folder / "network.png", dpi=100, facecolor="white")
    draw_contracts(load_sample_image("flower.jpg")).savefig(folder / "contracts.png", dpi=64)
    with Image.open(folder / "contracts.png") as image:
        small = image.convert("RGB").quantize(128)
    small.save(folder / "contracts.png", optimize=True)


def draw(transform: Transform, model, pixels: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Figure:
    """Draws a column for each image: the image with its Grad-CAM, and below it the likeliest classes."""
    batch = transform(pixels)
    heat, probabilities = keras_resdense.grad_cam(model, batch), model.predict(batch, verbose=0)
    figure = Figure(figsize=(1.9 * len(pixels), 3.6), layout="constrained")
    axes = figure.subplots(2, len(pixels), height_ratios=(3, 1.6))
    for column, (image, looked, shares, label) in enumerate(zip(batch, heat, probabilities, labels, strict=True)):
        above, below = axes[:, column]
        above.imshow(255 - image[..., 0], cmap="gray", vmin=0, vmax=255)
        above.imshow(looked, cmap="inferno", alpha=0.45 * looked, vmin=0, vmax=1)
        above.set_title(names[label], fontsize=10)
        above.axis("off")
        best = np.argsort(-shares)[:3]
        colours = ["tab:green" if number == label else "tab:gray" for number in best]
        below.barh(range(3), shares[best], color=colours, alpha=0.5)
        for row, number in enumerate(best):
            below.text(0.03, row, f"{names[number]}  {shares[number]:.0%}", va="center", fontsize=8)
        below.set(xlim=(0, 1), ylim=(2.6, -0.6), xticks=[], yticks=[])
        below.spines[:].set_visible(False)
    return figure


def draw_contracts(photo: np.ndarray) -> Figure:
    """Draws a photo, and how three contracts prepare it for networks that take 96 pixels."""
    contracts = {
        'resize="squash"': ImageContract(size=(96, 96)),
        'resize="shorter_side"': ImageContract(size=(96, 96), resize="shorter_side"),
        "and crop=0.5": ImageContract(size=(96, 96), resize="shorter_side", crop=0.5),
    }
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    shown = {"the photo": photo} | {name: keras_resdense.transform(row)(photo)[0] for name, row in contracts.items()}
    for axis, (name, pixels) in zip(axes, shown.items(), strict=True):
        axis.imshow(pixels.astype("uint8"))
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    return figure


if __name__ == "__main__":
    main()
