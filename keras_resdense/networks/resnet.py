"""Deep Residual Learning for Image Recognition (He et al. 2015, arXiv 1512.03385), and its family.

A block computes `y = F(x) + shortcut(x)`. `F` is a list of convolutions. A row of `ORDERS`, the five
units of 2016 (1603.05027, figure 4), places batch norm and ReLU. The shortcut is the identity or a
projection. A network is a row of `RESNETS`.

Choices on which zoos disagree:

* Stride of a bottleneck: in its 3×3 ("v1.5": torchvision, timm, and here every row without a suffix),
  or in its first 1×1 (the paper, keras.applications, and here the V1 rows).
* Shortcuts (section 3.3): A pads with channels of zeros, B projects where channels grow, C always
  projects. As published, ImageNet rows use B and CIFAR rows A. None makes the paper's plain networks.
* D rows pool the shortcut before its projection instead of striding it (1812.01187, figure 2 (B)).
* V1 rows use keras.applications' epsilon 1.001e-5 and momentum 0.99.

Stages are numbered as in table 1, from conv2_x: `stage2_block1_conv1`. The side of the feature maps
for a 224-pixel image is 112 after the stem's convolution, then 56, 28, 14, 7; for a 32-pixel
image of the CIFAR networks 32, 32, 16, 8.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import keras

from keras_resdense.checks import require, require_rate, require_whole
from keras_resdense.graph import nest
from keras_resdense.networks import layers
from keras_resdense.networks.layers import CIFAR_STEM, DEEP_STEM, Convolution, Network, Style, Tensor
from keras_resdense.networks.orders import ORDERS, Order, OrderName
from keras_resdense.pretrained.layouts import KERAS_EPSILON

#: `basic_block`, `bottleneck_block`, or a function that takes their arguments.
Block = Callable[..., Tensor]
#: Filters of the first stage, to which `base_width` refers.
_FIRST_FILTERS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualStyle(Style):
    """Choices that all blocks of a residual network share.

    Attributes:
        order: Key of `ORDERS`.
        shortcut: "A", "B" or "C" (1512.03385, section 3.3), or None for a plain network.
        pooled_shortcut: Whether a projection averages 2×2 pixels instead of striding over them.
        strided_convolution: "3x3" or "1x1": which convolution of a bottleneck takes the stride.
        base_width: Channels of a group's 3×3 in a stage of 64 filters, such as the first (torchvision's meaning).
        groups: Groups of the 3×3 convolutions (ResNeXt's cardinality, 1611.05431).
        squeeze_excite: Whether every block ends with a squeeze-and-excitation gate (1709.01507).
        zero_init_last_gamma: Whether the last batch norm of every block starts at γ = 0 (1706.02677,
            section 5.1).
        activated_identity: Whether identity shortcuts also read the pre-activated tensor, as projections
            always do.
        bias: Whether projections and last convolutions add a bias, as in keras.applications' V2.
    """

    order: OrderName = "original"
    shortcut: Literal["A", "B", "C"] | None = "B"
    pooled_shortcut: bool = False
    strided_convolution: Literal["3x3", "1x1"] = "3x3"
    base_width: int = 64
    groups: int = 1
    squeeze_excite: bool = False
    zero_init_last_gamma: bool = False
    activated_identity: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "order", self.order in ORDERS, f"one of {list(ORDERS)}")
        require(self, "shortcut", self.shortcut in ("A", "B", "C", None), "'A', 'B', 'C' or None")
        require(self, "strided_convolution", self.strided_convolution in ("3x3", "1x1"), "'3x3' or '1x1'")
        require_whole(self, "base_width")
        require_whole(self, "groups")
        has_last_norm = "bn" in ORDERS[self.order].last
        allowed = f"False where order is {self.order!r}: no batch norm ends its blocks"
        require(self, "zero_init_last_gamma", has_last_norm or not self.zero_init_last_gamma, allowed)

    def width(self, filters: int) -> int:
        """Returns how many channels the inner convolutions of a block have."""
        return filters * self.base_width // _FIRST_FILTERS * self.groups


def basic_block(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    dilations: tuple[int, int] = (1, 1),
    drop_path: float = 0.0,
    style: ResidualStyle = ResidualStyle(),
    name: str = "block",
) -> Tensor:
    """Adds the two 3×3 convolutions of figure 5, left, and their shortcut.

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        filters: Channels of both convolutions.
        stride: Stride of the first convolution, in pixels.
        dilations: Dilations of the two convolutions; the second is its stage's.
        drop_path: Probability of dropping the residual branch in training.
        style: Shared choices.
        name: Start of the names of the layers; the last is `{name}_out`.

    Returns:
        Keras tensor `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    width = style.width(filters)
    convolutions = [
        Convolution(width, 3, stride, dilation=dilations[0], groups=style.groups),
        Convolution(filters, 3, dilation=dilations[1], groups=style.groups, bias=style.bias),
    ]
    return residual_unit(x, convolutions, dilation=dilations[1], drop_path=drop_path, style=style, name=name)


def bottleneck_block(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    dilations: tuple[int, int] = (1, 1),
    drop_path: float = 0.0,
    style: ResidualStyle = ResidualStyle(),
    name: str = "block",
) -> Tensor:
    """Adds the 1×1, 3×3, 1×1 convolutions of figure 5, right, and their shortcut.

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        filters: Channels of the narrow convolutions; the block's output has four times as many.
        stride: Stride of the convolution that `style.strided_convolution` names, in pixels.
        dilations: Dilation of the 3×3 convolution, and that of its stage.
        drop_path: Probability of dropping the residual branch in training.
        style: Shared choices.
        name: Start of the names of the layers; the last is `{name}_out`.

    Returns:
        Keras tensor `(batch, ceil(height / stride), ceil(width / stride), 4 * filters)`.
    """
    width = style.width(filters)
    strides = (stride, 1) if style.strided_convolution == "1x1" else (1, stride)
    convolutions = [
        Convolution(width, 1, strides[0]),
        Convolution(width, 3, strides[1], dilation=dilations[0], groups=style.groups),
        Convolution(EXPANSIONS[bottleneck_block] * filters, 1, bias=style.bias),
    ]
    return residual_unit(x, convolutions, dilation=dilations[1], drop_path=drop_path, style=style, name=name)


#: Channels of a block's output, in multiples of its filters (figure 5).
EXPANSIONS: dict[Block, int] = {basic_block: 1, bottleneck_block: 4}


def identity_block(
    x: Tensor, filters: int, *, block: Block = basic_block, style: ResidualStyle = ResidualStyle(), name: str = "block"
) -> Tensor:
    """Adds a block whose shortcut is the identity (figure 2).

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        filters: Filters of the block.
        block: `basic_block` or `bottleneck_block`.
        style: Shared choices.
        name: Start of the names of the layers; the last is `{name}_out`.

    Returns:
        Keras tensor of the shape of `x`.

    Raises:
        ValueError: If the block's output has other channels than `x`.
    """
    made = EXPANSIONS.get(block, 1) * filters
    if x.shape[-1] != made:
        raise ValueError(
            f"identity_block({block.__name__}, filters={filters}) makes {made} channels, but x has "
            f"{x.shape[-1]}: choose filters so that they agree, or use projection_block."
        )
    return block(x, filters, style=dataclasses.replace(style, shortcut="A"), name=name)


def projection_block(
    x: Tensor,
    filters: int,
    *,
    stride: int = 2,
    block: Block = basic_block,
    style: ResidualStyle = ResidualStyle(),
    name: str = "block",
) -> Tensor:
    """Adds a block whose shortcut is a 1×1 convolution (equation 2), also called convolution block.

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        filters: Filters of the block.
        stride: Stride of the block, in pixels.
        block: `basic_block` or `bottleneck_block`.
        style: Shared choices.
        name: Start of the names of the layers; the last is `{name}_out`.

    Returns:
        Keras tensor `(batch, ceil(height / stride), ceil(width / stride), channels of the block)`.
    """
    return block(x, filters, stride=stride, style=dataclasses.replace(style, shortcut="C"), name=name)


def residual_unit(
    x: Tensor,
    convolutions: list[Convolution],
    *,
    dilation: int = 1,
    drop_path: float = 0.0,
    style: ResidualStyle = ResidualStyle(),
    name: str = "unit",
) -> Tensor:
    """Adds any residual unit: convolutions in the style's order of batch norm, ReLU and addition.

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        convolutions: The residual branch; the product of their strides is the unit's.
        dilation: Dilation of its stage. If it is above 1, a pooled shortcut averages at stride 1, as in timm.
        drop_path: Probability of dropping the residual branch in training.
        style: Shared choices.
        name: Start of the names of the layers; the last is `{name}_out`.

    Returns:
        Keras tensor with the channels of the last convolution.
    """
    order = ORDERS[style.order]
    activated, branch = _branch(x, convolutions, order, style, name)
    if style.squeeze_excite:
        branch = layers.squeeze_excite(branch, style, f"{name}_se")
    merged = layers.drop_path(branch, drop_path, f"{name}_drop_path")
    if style.shortcut:
        shortcut = _shortcut(x, activated, convolutions, dilation, style, f"{name}_shortcut")
        merged = keras.layers.Add(name=f"{name}_add" if order.merged else f"{name}_out")([shortcut, merged])
    merged = layers.apply_steps(merged, order.merged[:-1], style, name, "_out")
    return layers.relu(merged, style, f"{name}_out") if order.merged else merged


def _branch(
    x: Tensor, convolutions: list[Convolution], order: Order, style: ResidualStyle, name: str
) -> tuple[Tensor, Tensor]:
    """Returns the tensor after the first `before` steps, and the branch's output."""
    activated = x = layers.apply_steps(x, order.before, style, name, 1)
    for index, convolution in enumerate(convolutions[:-1], start=1):
        x = layers.convolve(x, convolution, style, f"{name}_conv{index}")
        x = layers.apply_steps(x, order.between, style, name, index)
        x = layers.apply_steps(x, order.before, style, name, index + 1)
    last = len(convolutions)
    x = layers.convolve(x, convolutions[-1], style, f"{name}_conv{last}")
    return activated, layers.apply_steps(x, order.last, style, name, last, zero_init=style.zero_init_last_gamma)


def _shortcut(
    x: Tensor, activated: Tensor, convolutions: list[Convolution], dilation: int, style: ResidualStyle, name: str
) -> Tensor:
    stride = math.prod(convolution.stride for convolution in convolutions)
    filters = convolutions[-1].filters
    if style.shortcut == "C" or (style.shortcut == "B" and x.shape[-1] != filters):
        return _projection(activated, Convolution(filters, 1, stride, bias=style.bias), dilation, style, name)
    x = activated if style.activated_identity else x
    x = layers.subsample(x, stride, f"{name}_pool") if stride > 1 else x
    return layers.pad_channels(x, filters, f"{name}_pad") if x.shape[-1] != filters else x


def _projection(x: Tensor, convolution: Convolution, dilation: int, style: ResidualStyle, name: str) -> Tensor:
    if style.pooled_shortcut and convolution.stride > 1:
        x = keras.layers.AveragePooling2D(2, convolution.stride, padding="same", name=f"{name}_pool")(x)
        convolution = dataclasses.replace(convolution, stride=1)
    elif style.pooled_shortcut and dilation > 1:
        x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pool_pad")(x)
        x = keras.layers.AveragePooling2D(2, 1, name=f"{name}_pool")(x)
    x = layers.convolve(x, convolution, style, f"{name}_conv")
    return layers.batch_norm(x, style, f"{name}_bn") if "bn" in ORDERS[style.order].last else x


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet(ResidualStyle, Network):
    """A row of the zoo: a residual or plain network.

    Attributes:
        block: `basic_block` or `bottleneck_block`.
        filters: Filters of the blocks of each stage. The stem has as many as the first stage.
        strided_block: Which block of a stage halves the feature map: "first", or "last" to do it before the
            next stage, as keras.applications' V2 does.
        drop_path: Probability of dropping the last block's branch; it grows linearly from 0 at the
            first block (1603.09382, section 3).
        activated_first_identity: Whether the first activation comes before the first split (1603.05027,
            appendix) and not after it, as in timm.
        nested_stages: Whether each stage is a model of its own inside the model. Keras visits layers by
            recursion, which Python limits to a depth of 1,000.
        memory_efficient: Whether training on TensorFlow recomputes the feature maps inside of blocks instead of
            keeping them (1604.06174), in all stages but the last. Where stages are nested, it recomputes whole stages.
    """

    block: Block = basic_block
    filters: tuple[int, ...] = (64, 128, 256, 512)
    strided_block: Literal["first", "last"] = "first"
    drop_path: float = 0.0
    activated_first_identity: bool = False
    nested_stages: bool = False
    memory_efficient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "block", callable(self.block), "a function such as basic_block or bottleneck_block")
        require(self, "filters", len(self.filters) == len(self.depths), f"{len(self.depths)} numbers, one a stage")
        require(self, "strided_block", self.strided_block in ("first", "last"), "'first' or 'last'")
        require_rate(self, "drop_path")
        allowed = "0 with memory_efficient: a recomputed block would drop other branches"
        require(self, "drop_path", not (self.memory_efficient and self.drop_path), allowed)

    def body(self, x: Tensor, prefix: str) -> Tensor:
        order = ORDERS[self.order]
        x = layers.add_stem(x, self.stem, self.filters[0], self, order.stem, f"{prefix}stem")
        for stage in range(len(self.depths)):
            add = partial(self._add_stage, stage=stage, prefix=prefix)
            x = nest(add, x, f"{prefix}stage{stage + 2}") if self.nested_stages else add(x)
        return layers.apply_steps(x, order.before, self, f"{prefix}final", "")

    def _add_stage(self, x: Tensor, stage: int, prefix: str) -> Tensor:
        before, last = sum(self.depths[:stage]), max(1, sum(self.depths) - 1)
        first = dataclasses.replace(self, activated_identity=self.activated_identity or self.activated_first_identity)
        for index, (stride, dilations) in enumerate(self._block_steps(stage)):
            x = self.block(
                x,
                self.filters[stage],
                stride=stride,
                dilations=dilations,
                drop_path=self.drop_path * (before + index) / last,
                style=self if before + index else first,
                name=f"{prefix}stage{stage + 2}_block{index + 1}",
            )
        return x

    def _block_steps(self, stage: int) -> list[tuple[int, tuple[int, int]]]:
        """Returns the stride and the dilations of each block of a stage."""
        steps = [*self.stage_steps(), (1, 1, 1)]
        stride, dilation, before = steps[stage]
        same = [(1, (dilation, dilation))] * (self.depths[stage] - 1)
        if self.strided_block == "first":
            return [(stride, (before, dilation)), *same]
        return [*same, (steps[stage + 1][0], (dilation, dilation))]


_bottleneck = partial(ResNet, block=bottleneck_block)
_cifar = partial(ResNet, stem=CIFAR_STEM, filters=(16, 32, 64), shortcut="A")

#: 1512.03385, table 1; 200 of 1603.05027, section 5. ResNeXt: 1611.05431, table 1. Wide: 1605.07146,
#: section 3. CIFAR: section 4.2, depth 6n + 2.
RESNETS: dict[str, ResNet] = {
    "resnet18": ResNet(depths=(2, 2, 2, 2)),
    "resnet34": ResNet(depths=(3, 4, 6, 3)),
    "resnet50": _bottleneck(depths=(3, 4, 6, 3)),
    "resnet101": _bottleneck(depths=(3, 4, 23, 3)),
    "resnet152": _bottleneck(depths=(3, 8, 36, 3)),
    "resnet200": _bottleneck(depths=(3, 24, 36, 3)),
    "resnext50_32x4d": _bottleneck(depths=(3, 4, 6, 3), groups=32, base_width=4),
    "resnext101_32x8d": _bottleneck(depths=(3, 4, 23, 3), groups=32, base_width=8),
    "resnext101_64x4d": _bottleneck(depths=(3, 4, 23, 3), groups=64, base_width=4),
    "wideresnet50_2": _bottleneck(depths=(3, 4, 6, 3), base_width=128),
    "wideresnet101_2": _bottleneck(depths=(3, 4, 23, 3), base_width=128),
    "resnet20": _cifar(depths=(3, 3, 3)),
    "resnet32": _cifar(depths=(5, 5, 5)),
    "resnet44": _cifar(depths=(7, 7, 7)),
    "resnet56": _cifar(depths=(9, 9, 9)),
    "resnet110": _cifar(depths=(18, 18, 18)),
    "resnet1202": _cifar(depths=(200, 200, 200), nested_stages=True),
}

#: The conventions of keras.applications and, for the stride, of the 2015 paper.
KERAS_V1: dict[str, Any] = {
    "strided_convolution": "1x1",
    "batch_norm_epsilon": KERAS_EPSILON,
    "batch_norm_momentum": 0.99,
}


def _variations(depths: str, name: str, changes: dict[str, Any]) -> dict[str, ResNet]:
    return {name.format(depth): dataclasses.replace(RESNETS[f"resnet{depth}"], **changes) for depth in depths.split()}


RESNETS |= (
    _variations("50 101 152", "resnet{}v1", KERAS_V1)
    | _variations("18 34 50 101 152 200", "resnet{}d", {"stem": DEEP_STEM, "pooled_shortcut": True})
    | _variations("18 34 50 101 152", "seresnet{}", {"squeeze_excite": True})
    | _variations("18 34 20 32 44 56", "plainnet{}", {"shortcut": None})
)
