"""Family map: the published accuracy of networks, against their parameters and their multiply-adds.

Accuracy is what timm (its `results/results-imagenet.csv`) and keras.applications (keras.io) publish; the rest is
counted in our networks, for the size of image it was measured at. A pale mark is a set of weights; a line joins the
best of each network that saw no other images than ImageNet's.

    python examples/family_map.py

About 6 minutes on two cores. Not yet run.
"""

import re

from experiment import COLOURS, MARKS, draw_points, options_parser, panels, read, write

from keras_resdense import count_macs, count_parameters, create_model
from keras_resdense.catalogue import published_weights
from keras_resdense.drawing import save_figure

PATTERNS = {
    "ResNet": r"resnet\d+",
    "ResNet-D": r"resnet\d+d",
    "ResNeXt": r"resnext.*",
    "SE-ResNet": r"seresnet\d+",
    "Wide ResNet": r"wideresnet.*",
    "ResNet V2": r"resnet\d+v2",
    "DenseNet": r"densenet\d+",
    "V1 of Keras": r"resnet\d+v1",
    "V2 of Keras": r"resnet\d+v2_keras",
}


def main() -> None:
    options = options_parser(__doc__).parse_args()
    path = options.folder / "family_map.json"
    counts, sets = read(path), [found for found in published_weights() if found.top1][: 3 if options.quick else None]
    for variant, side in dict.fromkeys((found.variant, found.input_size) for found in sets):
        if f"{variant} at {side}" not in counts:
            model = create_model(variant, input_shape=(side, side, 3))
            counts[f"{variant} at {side}"] = [count_parameters(model) / 1e6, count_macs(model) / 1e9]
            write(path, counts)

    figure, axes = panels(2, width=5.5, height=5, sharey=True)
    for column, axis in enumerate(axes):
        across = {found: counts[f"{found.variant} at {found.input_size}"][column] for found in sets}
        for style, (family, names) in enumerate(PATTERNS.items()):
            fitting = sorted((f for f in sets if re.fullmatch(names, f.variant)), key=lambda found: found.top1)
            best = {found.variant: found for found in fitting if "_ft_" not in found.name}.values()
            points = sorted((across[found], found.top1, re.search(r"\d+", found.variant)[0]) for found in best)
            every = [across[found] for found in fitting], [found.top1 for found in fitting]
            axis.plot(*every, MARKS[style], color=COLOURS[style], alpha=0.2, markeredgewidth=0)
            draw_points(axis, points, style, family)
    axes[0].set(xlabel="million parameters", ylabel="top-1 on ImageNet as published (%)")
    axes[1].set(xlabel="billion multiply-adds")
    axes[1].legend(fontsize=8)
    save_figure(figure, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
