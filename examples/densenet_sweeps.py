"""DenseNet (1608.06993): growth rate k, compression θ, ResNets of the same size, and which features are reused.

Trains DenseNet-BC-40 with several k and θ, and ResNet-20 in four widths, on 6,400 images of Fashion-MNIST at 14×14
pixels, with one seed. The heat maps repeat the paper's figure 5 for the network with k = 12 and θ = 0.5.

    python examples/densenet_sweeps.py [--full]

Takes 24 minutes on one core. A larger k gives fewer errors, and θ = 0.5 costs nothing. After so few steps, ResNets are
better.
"""

import dataclasses

import numpy as np
from experiment import Experiment, command_line, draw_points, mean_error, panels, print_table

from keras_resdense import VARIANTS
from keras_resdense.insight.analysis import feature_reuse
from keras_resdense.insight.drawing import draw_feature_reuse

DENSENET = VARIANTS["densenetbc40_12"]
DENSENETS = [(k, 0.5) for k in (6, 12, 24)] + [(12, theta) for theta in (0.25, 1.0)]
ROWS = {f"k={k}, θ={t}": dataclasses.replace(DENSENET, growth_rate=k, compression=t) for k, t in DENSENETS}
ROWS |= {f"{n} filters": dataclasses.replace(VARIANTS["resnet20"], filters=(n, 2 * n, 4 * n)) for n in (6, 8, 12, 16)}
#: Lines of the figure, and the text that the names of their networks contain.
LINES = {"DenseNet-BC-40, θ=0.5": "θ=0.5", "DenseNet-BC-40, k=12": "k=12", "ResNet-20": "filters"}


def look(model) -> dict[str, list]:
    """Returns the mean weights of each block by source and reader; None where the source comes after the reader."""
    found = {block: np.round(weights.astype("float64"), 5) for block, weights in feature_reuse(model).items()}
    return {block: np.where(np.isnan(weights), None, weights).tolist() for block, weights in found.items()}


def main() -> None:
    experiment = command_line(__doc__, Experiment(name="densenet_sweeps", epochs=8, seeds=1))
    name = "k=12, θ=0.5"
    (first, *_) = experiment.train({name: ROWS[name]}, look)[name]["runs"]
    networks = experiment.train(ROWS)
    figure, axes = panels(2, sharey=True)
    for axis, measure, unit in zip(axes, ("parameters", "macs"), (1e3, 1e6), strict=True):
        for style, (label, part) in enumerate(LINES.items()):
            chosen = {name: found for name, found in networks.items() if part in name}
            words = {name: name.replace(part, "").strip(", ") for name in chosen}
            points = sorted((found[measure] / unit, mean_error(found), words[name]) for name, found in chosen.items())
            draw_points(axis, points, style, label)
    axes[0].set(xlabel="thousand parameters", ylabel="test error (%)")
    axes[1].set(xlabel="million multiply-adds")
    axes[0].legend()
    experiment.save(figure)
    reuse = {block: np.array(weights, "float64") for block, weights in first["after"].items()}
    experiment.save(draw_feature_reuse(reuse), "_reuse")
    print_table(networks)


if __name__ == "__main__":
    main()
