"""Family map: published accuracy of networks against their parameters and multiply-adds.

timm (`results/results-imagenet.csv`) and keras.applications (keras.io) publish the accuracies. Pale marks show all
weights. Lines connect the best ones that were trained on ImageNet only.

    python examples/family_map.py

Takes a few minutes. Better recipes bring ResNet-50 5.0 points; 152 instead of 50 layers, with the same recipe, 2.2.
"""

import re

from experiment import COLOURS, MARKS, draw_points, options_parser, panels, read, save, write

from keras_resdense import count_macs, count_parameters, create_model
from keras_resdense.pretrained.catalogue import published_weights

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
SCALES = {"million parameters": (10, 20, 50, 100), "billion multiply-adds": (2, 5, 10, 20)}


def main() -> None:
    options = options_parser(__doc__).parse_args()
    path = options.folder / "family_map.json"
    counts, sets = read(path), [found for found in published_weights() if found.top1][: 3 if options.quick else None]
    for variant, side in dict.fromkeys((found.variant, found.input_size) for found in sets):
        if f"{variant} at {side}" not in counts:
            model = create_model(variant, input_shape=(side, side, 3))
            counts[f"{variant} at {side}"] = [count_parameters(model) / 1e6, count_macs(model) / 1e9]
            write(path, counts)
    figure, axes = panels(2, width=5, height=4.6, sharey=True)
    for column, (axis, (label, ticks)) in enumerate(zip(axes, SCALES.items(), strict=True)):
        costs = {found: counts[f"{found.variant} at {found.input_size}"] for found in sets}
        for style, (family, names) in enumerate(PATTERNS.items()):
            fitting = sorted((f for f in sets if re.fullmatch(names, f.variant)), key=lambda found: found.top1)
            for found in fitting:
                axis.plot(costs[found][column], found.top1, MARKS[style], color=COLOURS[style], alpha=0.2, markersize=4)
            best = {found.variant: found for found in fitting if "_ft_" not in found.name}
            line = sorted(best.values(), key=lambda found: costs[found])
            words = {found: re.search(r"\d+", found.variant)[0] for found in (*line[:1], *line[-1:])}
            draw_points(axis, [(costs[f][column], f.top1, words.get(f, "")) for f in line], style, family)
        axis.set(xlabel=label, xscale="log", xticks=ticks, xticklabels=ticks)
        axis.minorticks_off()
    axes[0].set_ylabel("top-1 on ImageNet as published (%)")
    axes[1].legend(fontsize=8)
    save(figure, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
