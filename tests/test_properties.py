"""Properties that hold for all inputs, tested with generated examples."""

import dataclasses
import io
import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

import keras_resdense
from keras_resdense import VARIANTS, ImageContract
from keras_resdense.data.sources import load_data
from keras_resdense.training import recipes
from keras_resdense.training.optimisation import phases_of, schedule
from keras_resdense.training.recipes import Recipe, Settings

NUMBERS = st.one_of(
    st.integers(-2, 300), st.floats(-1, 2), st.sampled_from([math.nan, math.inf, -math.inf, np.float32(0.5)])
)
ANYTHING = st.one_of(NUMBERS, st.booleans(), st.none(), st.text(max_size=3), st.tuples(NUMBERS))


def given_fields(kind, most):
    """Generates some fields of a row: each has its default, a similar value or anything else."""

    def like(field):
        default = st.nothing() if field.default is dataclasses.MISSING else st.just(field.default)
        return st.one_of(default, ANYTHING)

    fields = st.sampled_from(dataclasses.fields(kind))
    chosen = st.lists(fields, max_size=most, unique_by=lambda field: field.name)
    return chosen.flatmap(lambda found: st.fixed_dictionaries({field.name: like(field) for field in found}))


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.sweep)])
def test_whatever_is_given_makes_a_contract_that_is_kept_and_obeyed_or_a_clear_error(count):
    sizes = st.one_of(st.tuples(st.integers(1, 20), st.integers(1, 20)), ANYTHING)
    numbers = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3).map(tuple))
    like = {"mean": numbers, "std": numbers, "crop": st.floats(0, 1), "channels": st.sampled_from([1, 3])}
    like |= {"resize": st.sampled_from(["squash", "shorter_side"])}
    some = st.fixed_dictionaries({"size": sizes}, optional=like)
    image = st.tuples(st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 3]))

    @hypothesis.given(some, given_fields(ImageContract, 2), image)
    @hypothesis.settings(max_examples=count, deadline=None, derandomize=True, database=None)
    def check(fields, others, shape):
        try:
            contract = ImageContract(**others | fields)
        except ValueError as error:
            assert re.search(r"\w+\.\w+ is .*; it must be ", str(error))
            return
        assert ImageContract.from_json(contract.to_json()) == contract
        if contract.channels not in (1, 3) or max(contract.resized) > 1000:
            return
        (made,) = keras_resdense.transform(contract)([np.full(shape, 255, "uint8")])
        mean, std = np.array(contract.mean), np.array(contract.std)
        # White stays white whatever is cut, resized and converted.
        np.testing.assert_allclose(made, np.broadcast_to((255 - mean) / std, made.shape), rtol=1e-5)
        assert made.shape == (*contract.size, contract.channels)

    check()


# Keras warns of a softmax over one class.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("count", [8, pytest.param(1_000, marks=pytest.mark.sweep)])
def test_whatever_is_given_builds_a_network_of_that_shape_or_a_clear_error(count):
    small = {
        "resnet20": dataclasses.replace(VARIANTS["resnet20"], depths=(1, 1), filters=(4, 8)),
        "densenet40_12": dataclasses.replace(VARIANTS["densenet40_12"], depths=(2, 2), growth_rate=3),
    }
    sides = st.one_of(st.none(), st.integers(-1, 70), ANYTHING)
    options = st.fixed_dictionaries(
        {},
        optional={
            "input_shape": st.one_of(ANYTHING, st.tuples(sides, sides, st.one_of(st.integers(0, 4), ANYTHING))),
            "classes": st.one_of(st.integers(0, 12), ANYTHING),
            "include_top": st.booleans(),
            "pooling": st.sampled_from([None, "avg", "max", "mean"]),
            "classifier_activation": st.sampled_from([None, "softmax", "sigmoid", "softmaxx"]),
            "include_preprocessing": st.sampled_from([False, True, "caffe", "cafe"]),
            "layer_prefix": st.sampled_from(["", "a_"]),
        },
    )

    @hypothesis.given(st.sampled_from(sorted(small)), options)
    @hypothesis.settings(max_examples=count, deadline=None, derandomize=True, database=None)
    def check(name, fields):
        try:
            model = keras_resdense.create_model(small[name], **fields)
        except ValueError as error:
            assert len(str(error)) > 20
            return
        *sides, channels = model.input_shape[1:]
        if fields.get("input_shape") is not None:
            assert (*sides, channels) == tuple(fields["input_shape"])
        outputs = model.predict_on_batch(np.zeros((1, *(side or 40 for side in sides), channels)))
        assert np.isfinite(outputs).all() and outputs.shape[0] == 1
        if fields.get("include_top", True):
            assert outputs.shape == (1, fields.get("classes") or 10)
        else:
            assert outputs.ndim == (2 if fields.get("pooling") else 4)

    check()


#: What a file may be called: any text without what ends or separates names.
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and not name.startswith(".") and len(name.encode()) < 200
)


@pytest.mark.parametrize("count", [8, pytest.param(2_000, marks=pytest.mark.sweep)])
def test_folders_and_files_may_be_called_anything(tmp_path_factory, count):
    """Classes get the names of their folders, or a message says what is wrong. Every image is found."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")

    @hypothesis.given(st.lists(NAMES, min_size=2, max_size=3, unique=True), st.lists(NAMES, min_size=5, max_size=6))
    @hypothesis.settings(max_examples=count, deadline=None, derandomize=True, database=None)
    def check(classes, files):
        root = tmp_path_factory.mktemp("names") / "photos"
        for name in classes:
            (root / name).mkdir(parents=True)
            for number, file in enumerate(files):
                (root / name / f"{number}{file}.png").write_bytes(content.getvalue())
        try:
            data = load_data(str(root))
        except ValueError as error:
            assert "looks like another's" in str(error) or "rename it" in str(error)
            return
        assert len(data.class_names) == len(classes)
        assert data.train.count + data.test.count == len(classes) * len(files)
        split = root.parent / "split.json.gz"
        data.write_split(split)
        again = load_data(str(root), split=split)
        assert again.contents == data.contents and again.class_names == data.class_names

    check()


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
