"""Five orders of activation (1603.05027, figure 4): where batch norm and ReLU stand in a residual unit.

Trains a ResNet-56 with each order for eight epochs on 5,120 images of Fashion-MNIST at 14×14 pixels, with two seeds,
and ranks the orders beside the paper's errors, which are those of ResNet-110 on CIFAR-10.

    python examples/activation_orders.py [--full]

Takes 30 minutes on one core. Full pre-activation comes first, as in the paper, and ReLU before addition last.
"""

import dataclasses

from experiment import Experiment, command_line, draw_final_errors, draw_spread, panels, print_table

from keras_resdense import VARIANTS

#: Test errors in percent: 1603.05027, table 2.
PAPER = {
    "original": 6.61,
    "bn_after_addition": 8.17,
    "relu_before_addition": 7.84,
    "relu_only_preactivation": 6.71,
    "full_preactivation": 6.37,
}


def main() -> None:
    experiment = command_line(__doc__, Experiment(name="activation_orders", images=5120, epochs=8, seeds=2))
    resnet = dataclasses.replace(VARIANTS["resnet56"], activated_first_identity=True)
    networks = experiment.train({order: dataclasses.replace(resnet, order=order) for order in PAPER})
    figure, (curves, errors) = panels(2, width=4.8)
    for style, (order, network) in enumerate(networks.items()):
        draw_spread(curves, [run["test_error"] for run in network["runs"]], style, order)
    curves.set(title="mean and spread of the seeds", xlabel="epoch", ylabel="test error (%)")
    curves.legend()
    draw_final_errors(errors, networks, {order: f"paper: {error:.2f} %" for order, error in PAPER.items()})
    errors.set_title("at the end, each seed and the mean")
    experiment.save(figure)
    print_table(networks)


if __name__ == "__main__":
    main()
