"""Recipes: their values, how options change them, and their files."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_resdense.__main__ import COMMANDS
from keras_resdense.networks import zoo
from keras_resdense.options import make_parser, overridden
from keras_resdense.training import recipes
from keras_resdense.training.classifier import network
from keras_resdense.training.optimisation import compile_phase, phases_of, schedule
from keras_resdense.training.recipes import RECIPES, Recipe, Settings


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_a_network_it_fits_and_its_source(name):
    row = RECIPES[name]
    assert network(row.recipe).weight_decay in (0, row.recipe.weight_decay)
    assert row.source and row.published and row.measured


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_file_makes_it_again(name, tmp_path):
    settings = Settings(seed=3, precision="mixed_bfloat16")
    file = tmp_path / "recipe.json"
    file.write_text(recipes.describe(RECIPES[name].recipe, settings))
    assert recipes.read(file) == (RECIPES[name].recipe, settings)


def test_what_is_no_recipe_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"recipe": {}}')
    with pytest.raises(ValueError, match="other.json is not the recipe.json"):
        recipes.read(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"no recipe 'slow'\..*There are digits, fast"):
        recipes.get_recipe("slow")


def test_every_field_can_be_given_on_the_command_line():
    for kind in (Recipe, Settings):
        for field in dataclasses.fields(kind):
            words = {bool: [], tuple: ["3", "7.5"]}.get(type(field.default), [str(field.default)])
            options = make_parser(COMMANDS).parse_args(["train", "--" + field.name.replace("_", "-"), *words])
            expected = {bool: True, tuple: (3.0, 7.5)}.get(type(field.default), field.default)
            base = kind()
            assert getattr(overridden(base, options), field.name) == expected
            assert type(field.default).__name__ == field.type.partition("[")[0], "it is parsed as its default's type"
    untouched = overridden(RECIPES["strikes_back_a1"].recipe, make_parser(COMMANDS).parse_args(["train"]))
    assert untouched == RECIPES["strikes_back_a1"].recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"optimizer": "adam"},
        {"crop": "middle"},
        {"loss": "hinge"},
        {"ema": 1.0},
        {"learning_rate": float("nan")},
        {"frozen_epochs": 30},
        {"quantise": "int2"},
        {"quantised_epochs": 30, "quantise": "int8"},
        {"test_crop": 0.0},
        {"rand_augment": 11.0},
    ],
    ids=str,
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_a_knob_that_a_network_lacks_is_refused():
    with pytest.raises(ValueError, match="densenet121 is a DenseNet, which has no drop_path"):
        network(Recipe(model="densenet121", drop_path=0.1))
    assert network(Recipe(model="densenet121", dropout=0.1)).dropout == 0.1


def rates(recipe, steps=10):
    (*_, phase) = phases_of(recipe)
    rate = schedule(phase, recipe, steps)
    return [float(rate(step)) for step in range((phase.last - phase.first) * steps)]


def test_rate_falls_in_steps_at_the_epochs_named():
    found = rates(Recipe(epochs=6, milestones=(2, 4), warmup_epochs=1, batch_size=128, learning_rate_batch=64))
    expected = [0.02] * 10 + [0.2] * 10 + [0.02] * 20 + [0.002] * 20
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rate_falls_along_a_cosine_after_a_linear_rise():
    found = rates(Recipe(epochs=10, warmup_epochs=2))
    np.testing.assert_allclose(found[:20], np.arange(20) / 20 * 0.1, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[20:], 0.05 * (1 + np.cos(np.pi * np.arange(80) / 80)), rtol=1e-4, atol=1e-6)


def test_a_frozen_phase_has_its_own_rate_and_trains_the_classifier_only():
    recipe = Recipe(epochs=5, frozen_epochs=2, frozen_learning_rate=0.3)
    frozen, rest = phases_of(recipe)
    assert (frozen.first, frozen.last, rest.first, rest.last) == (0, 2, 2, 5)
    assert schedule(frozen, recipe, 10) == pytest.approx(0.3)
    model = zoo.create_model("resnet20")
    compile_phase(model, frozen, recipe, Settings(), 10)
    assert len(model.trainable_variables) == 2
    compile_phase(model, rest, recipe, Settings(), 10)
    assert len(model.trainable_variables) > 50


@pytest.mark.parametrize("optimizer", ["sgd", "lamb", "adamw", "muon"])
def test_weight_decay_spares_batch_norm_and_biases(optimizer):
    """The loss is 0, so only weight decay changes the weights."""
    recipe = Recipe(optimizer=optimizer, weight_decay=0.01, warmup_epochs=0)
    model = zoo.create_model(dataclasses.replace(network(recipe), depths=(1, 1, 1)))
    compile_phase(model, phases_of(recipe)[0], recipe, Settings(), 10)
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones_like(variable))

    def decay_alone(x, y, y_pred, sample_weight, training=True):
        return sum(model.losses, 0.0 * keras.ops.sum(y_pred))

    model.compute_loss = decay_alone
    model.train_on_batch(np.zeros((2, 32, 32, 3)), np.eye(10)[:2])
    for variable in model.trainable_variables:
        largest = float(keras.ops.max(variable))
        assert largest < 1 if variable.name == "kernel" else largest == pytest.approx(1), variable.path


def test_muon_orthogonalises_the_kernels_of_convolutions_and_adamw_moves_the_rest():
    recipe = Recipe(optimizer="muon", learning_rate=0.01, learning_rate_batch=64, warmup_epochs=0, weight_decay=0.0)
    model = zoo.create_model(dataclasses.replace(network(recipe), depths=(1, 1, 1)))
    compile_phase(model, phases_of(recipe)[0], recipe, Settings(), 10)
    random = np.random.default_rng(0)
    gradients = [random.normal(size=variable.shape).astype("float32") for variable in model.trainable_variables]
    before = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    adamw = keras.optimizers.AdamW(0.01, weight_decay=0.0)
    others = [keras.Variable(value) for value in before]
    model.optimizer.apply(list(map(keras.ops.convert_to_tensor, gradients)))
    adamw.apply(list(map(keras.ops.convert_to_tensor, gradients)), others)
    kernels = 0
    for variable, other, old, gradient in zip(model.trainable_variables, others, before, gradients, strict=True):
        step = old - keras.ops.convert_to_numpy(variable)
        if gradient.ndim != 4:
            np.testing.assert_allclose(step, old - keras.ops.convert_to_numpy(other), rtol=1e-4, atol=1e-7)
            continue
        kernels += 1
        rows, columns = np.prod(gradient.shape[:-1]), gradient.shape[-1]
        left, _, right = np.linalg.svd(gradient.reshape(rows, columns), full_matrices=False)
        # 2502.16982, equation 4: the root mean square of a step is 0.2 of the rate.
        scaled = step.reshape(rows, columns) / (0.01 * 0.2 * max(rows, columns) ** 0.5)
        # Five iterations bring the singular values near 1, as Muon's author describes, and keep the directions.
        values = left.T @ scaled @ right.T
        assert 0.6 < np.diag(values).min() and np.diag(values).max() < 1.3
        np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=1e-3)
    assert kernels == 7


def test_steps_of_one_call_divide_the_epoch():
    model = zoo.create_model("resnet20")
    recipe = Recipe()
    for wanted, expected in ((1, 1), (5, 4), (12, 12), (100, 12)):
        compile_phase(model, phases_of(recipe)[0], recipe, Settings(steps_per_execution=wanted), 12)
        assert model.steps_per_execution == expected
