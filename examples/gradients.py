"""Gradients by depth: a plain, two residual and a dense network, at initialisation and after 50 steps.

Left and middle: the norm of the gradient for each convolution's kernel. Right: the "1 +" of 1603.05027, equation 5: the
gradient at a block's output is that at the end of the stage plus the contributions of the blocks between.

    python examples/gradients.py [--full]

Three seeds take 12 minutes on one core. In the plain network, gradients explode towards the input at first and vanish
after some steps. Shortcuts keep them even.
"""

import dataclasses
import re

import keras
import tensorflow as tf
from experiment import Experiment, command_line, draw_spread, panels

from keras_resdense import VARIANTS
from keras_resdense.insight.analysis import gradient_norms

NETWORKS = {name: VARIANTS[name.lower().replace("-", "")] for name in ("PlainNet-56", "ResNet-56")} | {
    "PreActResNet-56": dataclasses.replace(VARIANTS["preactresnet110"], depths=(9, 9, 9)),
    "DenseNet-BC-58": dataclasses.replace(VARIANTS["densenetbc100_12"], depths=(9, 9, 9)),
}


def cosines(model: keras.Model, images, labels) -> list[float]:
    """Returns cosines between the gradients at the first stage's blocks and at its end, in their common channels."""
    outputs = [layer.output for layer in model.layers if re.fullmatch(r"stage2_\w+_out", layer.name)]
    probe = keras.Model(model.input, [*outputs, model.output])
    variables = probe.trainable_variables, probe.non_trainable_variables
    with tf.GradientTape() as tape:
        (*maps, predictions), _ = probe.stateless_call(*variables, images, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, predictions))
    found = tape.gradient(loss, maps)
    pairs = [(gradient, found[-1][..., : gradient.shape[-1]]) for gradient in found]
    return [float(tf.reduce_sum(a * b) / (tf.norm(a) * tf.norm(b))) for a, b in pairs]


def main() -> None:
    experiment = command_line(__doc__, Experiment(name="gradients", epochs=1))
    batch = [part[:128] for part in experiment.data_sets[0]]

    def look(model: keras.Model) -> dict[str, list[float]]:
        return {"norms": [found.norm for found in gradient_norms(model, *batch)], "cosines": cosines(model, *batch)}

    networks, (figure, axes) = experiment.train(NETWORKS, look), panels(3)
    for axis, moment, view in zip(axes, ("before", "after", "before"), ("norms", "norms", "cosines"), strict=True):
        for style, (name, network) in enumerate(networks.items()):
            draw_spread(axis, [run[moment][view] for run in network["runs"]], style, name)
    axes[0].set(title="at initialisation", ylabel="norm of the gradient", xlabel="convolution", yscale="log")
    axes[1].set(title="after 50 steps", xlabel="convolution", yscale="log")
    axes[2].set(title='"1 +", at initialisation', xlabel="block of the first stage", ylabel="cosine")
    axes[0].legend()
    experiment.save(figure)


if __name__ == "__main__":
    main()
