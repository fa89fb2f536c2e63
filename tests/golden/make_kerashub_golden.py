"""Records the shapes of KerasHub's pyramid outputs, for the tests to match.

Writes `kerashub_shapes.json` beside this file: `{variant: {level: [height, width, channels]}}` for images of
224 pixels. To make it anew:

    pip install keras-hub==0.32.0
    python tests/golden/make_kerashub_golden.py
"""

import json
from functools import partial
from pathlib import Path

from keras_hub.models import DenseNetBackbone, ResNetBackbone

resnet = partial(
    ResNetBackbone,
    input_conv_filters=[64],
    input_conv_kernel_sizes=[7],
    stackwise_num_filters=[64, 128, 256, 512],
    stackwise_num_strides=[1, 2, 2, 2],
    image_shape=(224, 224, 3),
)
basic = partial(resnet, block_type="basic_block", use_pre_activation=False)
bottleneck = partial(resnet, block_type="bottleneck_block", use_pre_activation=False)
densenet = partial(DenseNetBackbone, compression_ratio=0.5, growth_rate=32, image_shape=(224, 224, 3))

BACKBONES = {
    "resnet18": partial(basic, stackwise_num_blocks=[2, 2, 2, 2]),
    "resnet34": partial(basic, stackwise_num_blocks=[3, 4, 6, 3]),
    "resnet50": partial(bottleneck, stackwise_num_blocks=[3, 4, 6, 3]),
    "resnet101": partial(bottleneck, stackwise_num_blocks=[3, 4, 23, 3]),
    "resnet18v2": partial(basic, stackwise_num_blocks=[2, 2, 2, 2], use_pre_activation=True),
    "resnet50v2": partial(bottleneck, stackwise_num_blocks=[3, 4, 6, 3], use_pre_activation=True),
    "densenet121": partial(densenet, stackwise_num_repeats=[6, 12, 24, 16]),
    "densenet169": partial(densenet, stackwise_num_repeats=[6, 12, 32, 32]),
    "densenet201": partial(densenet, stackwise_num_repeats=[6, 12, 48, 32]),
}


def main() -> None:
    shapes = {
        variant: {level: list(found.shape[1:]) for level, found in build().pyramid_outputs.items()}
        for variant, build in BACKBONES.items()
    }
    (Path(__file__).parent / "kerashub_shapes.json").write_text(json.dumps(shapes, indent=1) + "\n")


if __name__ == "__main__":
    main()
