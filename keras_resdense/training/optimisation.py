"""Phases of a training, their learning rates and their optimisers."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import keras

from keras_resdense.graph import all_layers
from keras_resdense.networks.drop_ins import SGD
from keras_resdense.training.recipes import Recipe, Settings

#: Learning rate of quantisation-aware training, as a share of the recipe's.
QUANTISED_SHARE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """Epochs that are trained with one optimiser.

    Attributes:
        number: Number of the phase, from 0.
        first: Number of its first epoch, from 0.
        last: Number of the first epoch after it.
        frozen: Whether only the classifier is trained.
        quantised: Whether training is quantisation-aware.
    """

    number: int
    first: int
    last: int
    frozen: bool
    quantised: bool


def phases_of(recipe: Recipe) -> list[Phase]:
    """Divides a recipe's epochs into phases: first with frozen layers, then with all, then quantisation-aware."""
    floats = recipe.epochs - (recipe.quantised_epochs if recipe.quantise else 0)
    spans = itertools.pairwise(sorted({0, recipe.frozen_epochs, floats, recipe.epochs}))
    return [
        Phase(number=number, first=first, last=last, frozen=last == recipe.frozen_epochs, quantised=first == floats)
        for number, (first, last) in enumerate(spans)
    ]


def compile_phase(model: keras.Model, phase: Phase, recipe: Recipe, settings: Settings, steps: int) -> None:
    """Compiles a model for a phase whose epochs have `steps` steps."""
    for layer in all_layers(model):
        if not phase.quantised:
            layer.trainable = layer.name == "predictions" if phase.frozen else True
        if settings.sync_batch_norm and isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    model.compile(
        _optimizer(model, phase, recipe, steps),
        "binary_crossentropy" if recipe.loss == "binary" else "categorical_crossentropy",
        weighted_metrics=["accuracy"],
        jit_compile=settings.xla,
        # The number must divide an epoch.
        steps_per_execution=max(n for n in range(1, settings.steps_per_execution + 1) if steps % n == 0),
    )
    model.optimizer.build(model.trainable_variables)


def _optimizer(model: keras.Model, phase: Phase, recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    common = {
        "learning_rate": schedule(phase, recipe, steps),
        "use_ema": recipe.ema > 0,
        "ema_momentum": recipe.ema,
    }
    if recipe.optimizer == "sgd":
        return SGD(momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
    kinds = {
        "lamb": keras.optimizers.Lamb,
        "adamw": keras.optimizers.AdamW,
        # TensorFlow takes no name that starts with an underscore, as the class's does.
        "muon": partial(_Muon, adam_weight_decay=recipe.weight_decay, name="muon"),
    }
    optimizer = kinds[recipe.optimizer](weight_decay=recipe.weight_decay, **common)
    optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if v.name != "kernel"])
    return optimizer


class _Muon(keras.optimizers.Muon):
    """Keras's Muon for kernels of convolutions, which it takes as matrices `(height · width · channels, filters)`.

    Keras's class gives AdamW's steps to all variables that are not matrices. Here AdamW's steps are for all variables
    except these kernels, as in the original: https://kellerjordan.github.io/posts/muon.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        return len(variable.shape) != 4

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        return keras.ops.reshape(super().zeropower_via_newtonschulz5(_as_matrix(x), steps), x.shape)

    def lr_adjust(self, x: Any) -> Any:
        return keras.ops.reshape(super().lr_adjust(_as_matrix(x)), x.shape)


def _as_matrix(kernel: Any) -> Any:
    return keras.ops.reshape(kernel, (-1, kernel.shape[-1]))


def schedule(phase: Phase, recipe: Recipe, steps: int) -> Any:
    """Returns the learning rate of a phase, whose steps its optimiser counts from 0."""
    if phase.frozen:
        return recipe.scaled(recipe.frozen_learning_rate)
    peak, total = recipe.scaled(recipe.learning_rate), (phase.last - phase.first) * steps
    if phase.quantised:
        return keras.optimizers.schedules.CosineDecay(peak * QUANTISED_SHARE, total)
    warmup = min(round(recipe.warmup_epochs * steps), total // 2)
    if not recipe.milestones:
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else peak,
            decay_steps=total - warmup,
            warmup_target=peak if warmup else None,
            warmup_steps=warmup,
        )
    boundaries = [round(epoch * steps) for epoch in recipe.milestones]
    values = [peak / 10**power for power in range(len(boundaries) + 1)]
    if warmup:
        boundaries, values = [warmup, *boundaries], [peak / 10, *values]
    # Keras reaches the next value one step after a boundary.
    return keras.optimizers.schedules.PiecewiseConstantDecay([boundary - 1 for boundary in boundaries], values)
