"""Degradation (1512.03385, figures 1 and 6): a deeper plain network has more errors, a deeper residual one does not.

Trains PlainNet-20 and -56 and ResNet-20 and -56 on 6,400 images of Fashion-MNIST at 14×14 pixels, three seeds each.

    python examples/degradation.py [--full]

Takes 35 minutes on one core. The plain networks have 13.8 and 45.6 % errors, the residual ones 13.5 and 14.2 %.
"""

from experiment import Experiment, command_line, draw_spread, panels, print_table

from keras_resdense import VARIANTS

FAMILIES = {"plain": "PlainNet", "residual": "ResNet"}
DEPTHS = (20, 56)


def main() -> None:
    experiment = command_line(__doc__, Experiment(name="degradation"))
    names = [f"{family}-{depth}" for family in FAMILIES.values() for depth in DEPTHS]
    networks = experiment.train({name: VARIANTS[name.lower().replace("-", "")] for name in names})
    figure, axes = panels(2, sharey=True)
    for axis, (title, family) in zip(axes, FAMILIES.items(), strict=True):
        for style, depth in enumerate(DEPTHS):
            runs = networks[f"{family}-{depth}"]["runs"]
            draw_spread(axis, [run["train_error"] for run in runs], style, f"{depth} layers, training", "--")
            draw_spread(axis, [run["test_error"] for run in runs], style, f"{depth} layers, test")
        axis.set(title=title, xlabel="epoch")
    axes[0].set_ylabel("error (%)")
    axes[1].legend()
    experiment.save(figure)
    print_table(networks)


if __name__ == "__main__":
    main()
