"""Where batch norm and ReLU stand in a residual unit: the five orders of 1603.05027, figure 4."""

from __future__ import annotations

import dataclasses
from typing import Literal

OrderName = Literal[
    "original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation", "full_preactivation"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Where batch norm ("bn") and ReLU ("relu") stand in a residual unit.

    Attributes:
        before: Steps before each convolution.
        between: Steps after each convolution except the last.
        last: Steps after the last convolution.
        merged: Steps after the addition.
        stem: Steps after the stem's convolution.
    """

    before: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    stem: tuple[str, ...] = ("bn", "relu")


#: 1603.05027, figure 4 (a) to (e). An order that starts with an activation also ends the network with one.
ORDERS: dict[OrderName, Order] = {
    "original": Order(between=("bn", "relu"), last=("bn",), merged=("relu",)),
    "bn_after_addition": Order(between=("bn", "relu"), merged=("bn", "relu")),
    "relu_before_addition": Order(between=("bn", "relu"), last=("bn", "relu")),
    "relu_only_preactivation": Order(before=("relu",), between=("bn",), last=("bn",), stem=("bn",)),
    "full_preactivation": Order(before=("bn", "relu"), stem=()),
}
