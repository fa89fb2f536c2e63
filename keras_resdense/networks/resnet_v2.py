"""Identity Mappings in Deep Residual Networks (He et al. 2016, arXiv 1603.05027).

The networks of `keras_resdense.networks.resnet` with another unit: batch norm and ReLU come before each
convolution, so the shortcut is free of both, and once more after the last addition.

Choices on which zoos disagree:

* Projections read the pre-activated tensor (paper, timm, keras.applications); identities the raw one.
  In the CIFAR rows the first activation comes before the first split, as the paper's appendix says.
* The stem has no batch norm; its pooling pads with −∞ (timm). The stride is in the 3×3 of a stage's first
  block (paper's code, timm).
* The `_keras` rows follow keras.applications: the stride is in a stage's last block, whose identity
  shortcut is subsampled; the pooling pads with zeros; the stem, projections and last convolutions have
  biases; epsilon is 1.001e-5 and momentum 0.99.
"""

from __future__ import annotations

import dataclasses

from keras_resdense.networks.layers import IMAGENET_STEM, Tensor, max_pool_zero_padded
from keras_resdense.networks.resnet import (
    KERAS_V1,
    RESNETS,
    Block,
    ResidualStyle,
    ResNet,
    basic_block,
    bottleneck_block,
)


def preactivation_unit(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    block: Block = basic_block,
    style: ResidualStyle = ResidualStyle(),
    name: str = "unit",
) -> Tensor:
    """Adds a unit with full pre-activation (figure 1 (b), figure 4 (e)).

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        filters: Filters of the block.
        stride: Stride of the unit, in pixels.
        block: `basic_block` or `bottleneck_block`.
        style: Shared choices; `order` is replaced by "full_preactivation".
        name: Start of the names of the layers; the last is `{name}_out`.

    Returns:
        Keras tensor `(batch, ceil(height / stride), ceil(width / stride), channels of the block)`.
    """
    return block(x, filters, stride=stride, style=dataclasses.replace(style, order="full_preactivation"), name=name)


_PREACTIVATION = {"order": "full_preactivation"}
_CIFAR = {**_PREACTIVATION, "activated_first_identity": True}
_BOTTLENECK = {**_CIFAR, "block": bottleneck_block, "shortcut": "B"}
_KERAS = {
    **_PREACTIVATION,
    "stem": dataclasses.replace(IMAGENET_STEM, pool=max_pool_zero_padded, bias=True),
    "strided_block": "last",
    "bias": True,
    "batch_norm_epsilon": KERAS_V1["batch_norm_epsilon"],
    "batch_norm_momentum": KERAS_V1["batch_norm_momentum"],
}

#: ImageNet: section 5. CIFAR: tables 2 and 4, depth 6n + 2 (basic) or 9n + 2 (bottleneck).
RESNETS_V2: dict[str, ResNet] = {
    **{
        f"resnet{n}v2": dataclasses.replace(RESNETS[f"resnet{n}"], **_PREACTIVATION)
        for n in (18, 34, 50, 101, 152, 200)
    },
    **{f"resnet{n}v2_keras": dataclasses.replace(RESNETS[f"resnet{n}"], **_KERAS) for n in (50, 101, 152)},
    "preactresnet110": dataclasses.replace(RESNETS["resnet110"], **_CIFAR),
    "preactresnet164": dataclasses.replace(RESNETS["resnet110"], **_BOTTLENECK),
    "preactresnet1001": dataclasses.replace(RESNETS["resnet110"], **_BOTTLENECK, depths=(111, 111, 111)),
}
