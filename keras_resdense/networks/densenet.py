"""Densely Connected Convolutional Networks (Huang et al. 2017, arXiv 1608.06993).

Each layer reads the concatenation of all feature maps before it in its block and adds `growth_rate`
channels; transitions between blocks shrink channels by θ and halve the feature map. A network is a
row of `DENSENETS`.

Choices on which zoos disagree, and ours, which are the paper's and torchvision's:

* Batch norm and ReLU come before each convolution; the ImageNet stem has its own pair, the CIFAR stem
  none (section 3, "Implementation Details").
* The bottleneck's 1×1 has 4k channels (section 3, "Bottleneck layers").
* The stem has 2k channels in DenseNet-BC and on ImageNet, and 16 on CIFAR without bottlenecks.
* The pooling of a transition has no padding and drops an odd last row, as in torchvision.

The first block's feature maps have a quarter of the image's side, the next an eighth and so on. On CIFAR the first
block has the full side.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import ClassVar

import keras

from keras_resdense.checks import require, require_rate, require_whole
from keras_resdense.networks import dense_layers, layers
from keras_resdense.networks.layers import CIFAR_STEM, Convolution, Network, Style, Tensor

#: Channels of a layer's 1×1 convolution, in multiples of the growth rate (section 3, "Bottleneck layers").
_BOTTLENECK = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseStyle(Style):
    """Choices that all layers of a dense network share.

    Attributes:
        growth_rate: k, the channels that each layer adds.
        bottleneck: Whether a 1×1 convolution to 4k channels comes before each 3×3.
        dropout: Share of each layer's output that training drops (section 3: 0.2 without augmentation).
        memory_efficient: Whether training recomputes concatenations and batch norms instead of keeping them
            (1707.06990).
    """

    batch_norm_layer: ClassVar[type[keras.layers.BatchNormalization]] = dense_layers.BatchNormalization
    activation_layer: ClassVar[type[keras.layers.Activation]] = dense_layers.Activation

    growth_rate: int = 32
    bottleneck: bool = True
    dropout: float = 0.0
    memory_efficient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, "growth_rate")
        require_rate(self, "dropout")


def dense_layer(x: Tensor, *, dilation: int = 1, style: DenseStyle = DenseStyle(), name: str = "layer") -> Tensor:
    """Adds one layer H: BN-ReLU-Conv(1×1)-BN-ReLU-Conv(3×3), or BN-ReLU-Conv(3×3).

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        dilation: Dilation of the 3×3 convolution.
        style: Shared choices.
        name: Start of the names of the layers.

    Returns:
        Keras tensor `(batch, height, width, growth_rate)`: what the layer adds, not yet concatenated.
    """
    wide, narrow = Convolution(_BOTTLENECK * style.growth_rate, 1), Convolution(style.growth_rate, 3, dilation=dilation)
    kind = dense_layers.RecomputingConv2D if style.memory_efficient else keras.layers.Conv2D
    for index, convolution in enumerate([wide, narrow] if style.bottleneck else [narrow], start=1):
        x = layers.apply_steps(x, ("bn", "relu"), style, name, index)
        x = layers.convolve(x, convolution, style, f"{name}_conv{index}", kind=kind)
        x = keras.layers.Dropout(style.dropout, name=f"{name}_dropout{index}")(x) if style.dropout else x
    return x


def dense_block(
    x: Tensor, depth: int, *, dilation: int = 1, style: DenseStyle = DenseStyle(), name: str = "block"
) -> Tensor:
    """Adds a block of layers, each of which reads the feature maps of all before it (equation 2).

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        depth: Number of layers.
        dilation: Dilation of their 3×3 convolutions.
        style: Shared choices.
        name: Start of the names of the layers; the last is `{name}_layer{depth}_out`.

    Returns:
        Keras tensor `(batch, height, width, channels + depth * growth_rate)`.
    """
    for index in range(1, depth + 1):
        layer = f"{name}_layer{index}"
        added = dense_layer(x, dilation=dilation, style=style, name=layer)
        x = dense_layers.Concatenate(name=f"{layer}_out")([x, added])
    return x


def transition_layer(
    x: Tensor, compression: float = 0.5, *, stride: int = 2, style: Style = Style(), name: str = "transition"
) -> Tensor:
    """Adds BN-ReLU-Conv(1×1) to ⌊θ·channels⌋ channels and 2×2 average pooling.

    Args:
        x: Keras tensor `(batch, height, width, channels)`.
        compression: θ, in (0, 1].
        stride: 2, or 1 for no pooling.
        style: Shared choices.
        name: Start of the names of the layers.

    Returns:
        Keras tensor `(batch, height // stride, width // stride, floor(compression * channels))`.

    Raises:
        ValueError: If θ is outside (0, 1] or leaves no channel.
    """
    # The small number keeps a rounding error of the product from costing a channel.
    filters = math.floor(x.shape[-1] * compression + 1e-9)
    if not 0 < compression <= 1 or filters < 1:
        raise ValueError(
            f"compression is {compression!r}; it must be in (0, 1] and leave at least one of {x.shape[-1]} channels."
        )
    x = layers.apply_steps(x, ("bn", "relu"), style, name, "")
    x = layers.convolve(x, Convolution(filters, 1), style, f"{name}_conv")
    return keras.layers.AveragePooling2D(2, name=f"{name}_pool")(x) if stride > 1 else x


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseNet(DenseStyle, Network):
    """A row of the zoo: a dense network.

    Attributes:
        compression: θ of the transitions, in (0, 1].
        stem_filters: Channels that the stem makes; None for 2k.
    """

    compression: float = 0.5
    stem_filters: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "compression", 0 < self.compression <= 1, "in (0, 1]; 1 keeps all channels")
        if self.stem_filters is not None:
            require_whole(self, "stem_filters")

    def body(self, x: Tensor, prefix: str) -> Tensor:
        after_stem = ("bn", "relu") if self.stem.pool else ()
        filters = self.stem_filters or 2 * self.growth_rate
        x = layers.add_stem(x, self.stem, filters, self, after_stem, f"{prefix}stem")
        for stage, (depth, (stride, dilation, _)) in enumerate(
            zip(self.depths, self.stage_steps(), strict=True), start=2
        ):
            if stage > 2:
                x = transition_layer(
                    x, self.compression, stride=stride, style=self, name=f"{prefix}stage{stage - 1}_transition"
                )
            x = dense_block(x, depth, dilation=dilation, style=self, name=f"{prefix}stage{stage}")
        return layers.apply_steps(x, ("bn", "relu"), self, f"{prefix}final", "")


_cifar_bc = partial(DenseNet, stem=CIFAR_STEM)
_cifar = partial(_cifar_bc, bottleneck=False, compression=1.0, stem_filters=16)

#: Table 1 (264: k = 32) and table 2. CIFAR: three blocks of (L - 4) / 3 layers, BC of (L - 4) / 6.
DENSENETS: dict[str, DenseNet] = {
    "densenet121": DenseNet(depths=(6, 12, 24, 16)),
    "densenet161": DenseNet(depths=(6, 12, 36, 24), growth_rate=48),
    "densenet169": DenseNet(depths=(6, 12, 32, 32)),
    "densenet201": DenseNet(depths=(6, 12, 48, 32)),
    "densenet264": DenseNet(depths=(6, 12, 64, 48)),
    "densenet40_12": _cifar(depths=(12, 12, 12), growth_rate=12),
    "densenet100_12": _cifar(depths=(32, 32, 32), growth_rate=12),
    "densenet100_24": _cifar(depths=(32, 32, 32), growth_rate=24),
    "densenetbc40_12": _cifar_bc(depths=(6, 6, 6), growth_rate=12),
    "densenetbc100_12": _cifar_bc(depths=(16, 16, 16), growth_rate=12),
    "densenetbc250_24": _cifar_bc(depths=(41, 41, 41), growth_rate=24),
    "densenetbc190_40": _cifar_bc(depths=(31, 31, 31), growth_rate=40),
}
