"""How to train: a recipe is one row, and names its network and its data."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the outcome of a training, but the seed.

    Attributes:
        model: Name of a variant.
        data: Name of a data set.
        epochs: Passes over the training images.
        batch_size: Images a step, over all replicas together.
        learning_rate: Its peak; it rises linearly for `warmup_epochs`, then falls along a half cosine.
        warmup_epochs: Epochs until the peak.
        momentum: Of SGD, in Nesterov's form.
        weight_decay: λ on convolution and dense kernels.
        shift: How far images are shifted at random, as a share of their side.
    """

    model: str = "resnet20"
    data: str = "digits"
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.1
    warmup_epochs: int = 3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    shift: float = 0.125

    def __post_init__(self):
        for field in ("epochs", "batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        for field in ("warmup_epochs", "weight_decay", "learning_rate", "shift"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be 0 or more.")
