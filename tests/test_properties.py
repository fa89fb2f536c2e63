"""What holds for whatever is given, found by generated examples."""

import dataclasses
import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from keras_resdense.training import recipes
from keras_resdense.training.optimisation import phases_of, schedule
from keras_resdense.training.recipes import Recipe, Settings

NUMBERS = st.one_of(
    st.integers(-2, 300), st.floats(-1, 2), st.sampled_from([math.nan, math.inf, -math.inf, np.float32(0.5)])
)
ANYTHING = st.one_of(NUMBERS, st.booleans(), st.none(), st.text(max_size=3), st.tuples(NUMBERS))


def given_fields(kind, most):
    """Some fields of a row, each with its default, something like it or anything else."""

    def like(field):
        return st.one_of(st.just(field.default), ANYTHING)

    fields = st.sampled_from(dataclasses.fields(kind))
    chosen = st.lists(fields, max_size=most, unique_by=lambda field: field.name)
    return chosen.flatmap(lambda found: st.fixed_dictionaries({field.name: like(field) for field in found}))


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.sweep)])
def test_whatever_is_given_makes_a_recipe_that_is_kept_or_a_clear_error(tmp_path, count):
    path = tmp_path / "recipe.json"

    @hypothesis.given(given_fields(Recipe, 4), given_fields(Settings, 3))
    @hypothesis.settings(max_examples=count, deadline=None, derandomize=True, database=None)
    def check(fields, options):
        try:
            recipe, settings = Recipe(**fields), Settings(**options)
        except ValueError as error:
            assert re.search(r"\w+\.\w+ is .*; it must be ", str(error))
            return
        path.write_text(recipes.describe(recipe, settings))
        assert recipes.read(path) == (recipe, settings)
        for phase in phases_of(recipe):
            rate = schedule(phase, recipe, 10)
            assert math.isfinite(float(rate if isinstance(rate, int | float) else rate(0)))

    check()
