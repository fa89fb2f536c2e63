"""Shortcuts A, B and C (1512.03385, section 3.3), and bottleneck against basic blocks: costs and errors.

Trains ResNet-20 with each shortcut, and ResNet-29, which has a bottleneck instead of each basic block, on 6,400 images
of Fashion-MNIST at 14×14 pixels, with three seeds. Then builds the two blocks of figure 5 with 256 channels and counts
their weights.

    python examples/shortcuts.py [--full]

Takes 20 minutes on one core. All four networks have 13.5 to 13.6 % errors. Seeds differ by more.
"""

import dataclasses

import keras
from experiment import COLOURS, Experiment, command_line, draw_final_errors, panels, print_table

from keras_resdense import VARIANTS, bottleneck_block, count_macs, count_parameters, identity_block


def block_counts() -> dict[str, tuple[int, int]]:
    """Returns for each block the number of its convolutions' weights and of all its parameters, with batch norm."""
    # On a map of one pixel, a convolution uses each weight once.
    images = keras.Input((1, 1, 256))
    blocks = {
        "two 3×3 of 256": identity_block(images, 256),
        "1×1, 3×3, 1×1:\n256–64–64–256": identity_block(images, 64, block=bottleneck_block),
    }
    models = {name: keras.Model(images, output) for name, output in blocks.items()}
    return {name: (count_macs(model), count_parameters(model)) for name, model in models.items()}


def main() -> None:
    experiment = command_line(__doc__, Experiment(name="shortcuts"))
    rows = {f"ResNet-20 {kind}": dataclasses.replace(VARIANTS["resnet20"], shortcut=kind) for kind in "ABC"}
    rows["ResNet-29 B"] = dataclasses.replace(rows["ResNet-20 B"], block=bottleneck_block)
    networks = experiment.train(rows)
    figure, (errors, weights) = panels(2, width=4.8)
    notes = {name: f"{found['parameters']:,} parameters" for name, found in networks.items()}
    draw_final_errors(errors, networks, notes)
    errors.set_title("each seed and the mean")
    counts = block_counts()
    heights = [convolutions for convolutions, _ in counts.values()]
    bars = weights.bar(list(counts), heights, color=(COLOURS[1], COLOURS[3]), width=0.5)
    weights.bar_label(bars, fmt="{:,.0f}")
    weights.set(title="weights of a block's convolutions", yscale="log", ylim=(1e4, 3e6))
    experiment.save(figure)
    print_table(networks)
    for name, (convolutions, parameters) in counts.items():
        print(f"{' '.join(name.split())}: {convolutions:,} weights, {parameters:,} parameters with batch norm")


if __name__ == "__main__":
    main()
