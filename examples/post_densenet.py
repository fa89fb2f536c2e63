"""The beginning of a DenseNet, block by block: stem, six layers that read 64 to 224 channels, transition to 128.

Rebuilds a well-known PyTorch module from the package's public blocks and counts its parameters. The original module is
in `tests/golden/make_post_golden.py`, which records its outputs. With the same weights, this network gives the same
outputs (`pytest tests/test_examples.py`). DenseNet-121 begins in the same way, as the script shows.

    python examples/post_densenet.py

Takes less than half a minute. It counts 377,856 parameters, and the outputs equal those of DenseNet-121's first layers.
"""

import keras
import numpy as np

from keras_resdense import DenseNet121, DenseStyle, count_parameters, dense_block, transition_layer
from keras_resdense.networks.layers import IMAGENET_STEM, add_stem


def build(side: int = 224) -> keras.Model:
    """Builds the network for images `(side, side, 3)`."""
    style = DenseStyle(growth_rate=32)
    images = keras.Input((side, side, 3))
    x = add_stem(images, IMAGENET_STEM, 64, style, ("bn", "relu"), "stem")
    x = dense_block(x, 6, style=style, name="stage2")
    x = transition_layer(x, 0.5, style=style, name="stage2_transition")
    return keras.Model(images, x)


def main() -> None:
    model = build()
    for index in range(1, 7):
        bottleneck, narrow = (model.get_layer(f"stage2_layer{index}_conv{i}") for i in (1, 2))
        channels = [bottleneck.input.shape[-1], bottleneck.filters, narrow.filters]
        print(f"layer {index}: {channels[0]} channels, 1×1 to {channels[1]}, 3×3 to {channels[2]}")
    channels = model.get_layer("stage2_transition_conv").input.shape[-1]
    print(f"transition: {channels} channels to {model.output_shape[-1]}")
    print(f"{count_parameters(model):,} parameters")

    whole = DenseNet121(include_top=False, input_shape=model.input_shape[1:])
    beginning = keras.Model(whole.input, whole.get_layer("stage2_transition_pool").output)
    model.set_weights(beginning.get_weights())
    images = np.random.default_rng(0).normal(size=(1, *model.input_shape[1:]))
    difference = model.predict_on_batch(images) - beginning.predict_on_batch(images)
    print(f"largest difference to the beginning of DenseNet-121: {np.abs(difference).max():.1g}")


if __name__ == "__main__":
    main()
