"""Recipes that are chosen for folders of images, and the weights of rare classes."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resdense.__main__ import main
from keras_resdense.data.batches import class_counts, evaluation_batches, training_batches
from keras_resdense.data.examples import in_memory
from keras_resdense.data.keeping import keep
from keras_resdense.data.sources import load_data
from keras_resdense.training.choosing import choose, explain
from keras_resdense.training.classifier import network, plan_of
from keras_resdense.training.recipes import RECIPES, Recipe

ONE = tf.distribute.OneDeviceStrategy("/cpu:0")


def folder_of(root, counts, size):
    """Writes a folder of noisy images with given numbers per class."""
    random = np.random.default_rng(0)
    for label, count in enumerate(counts):
        (root / f"class {label}").mkdir()
        for number in range(count):
            pixels = random.integers(0, 256, (*size, 3), "uint8")
            Image.fromarray(pixels).save(root / f"class {label}" / f"{number}.png")
    return root


def test_small_images_of_unbalanced_classes(tmp_path):
    data = load_data(str(folder_of(tmp_path, (100, 20), (28, 40))))
    recipe, found = choose(data)
    assert (recipe.model, recipe.image_size, recipe.crop, recipe.padding) == ("resnet20", 28, "none", 2)
    assert not recipe.flip and recipe.scaled(recipe.learning_rate) == recipe.learning_rate
    assert recipe.balance and recipe.keep and recipe.batch_size == 16 and 6 <= recipe.epochs <= 50
    assert "96 images to train on and 24 held out, in 2 classes of 16 to 80 images" in found
    assert "Rare classes count for more" in explain(recipe) and "--flip" in explain(recipe)
    assert "imagenet" not in explain(recipe)


def test_larger_images_of_balanced_classes(tmp_path):
    data = load_data(str(folder_of(tmp_path, (30, 30), (100, 150))))
    recipe, found = choose(data)
    assert (recipe.model, recipe.image_size, recipe.crop, recipe.padding) == ("resnet18", 64, "none", 6)
    assert recipe.flip and not recipe.balance and recipe.batch_size == 32
    assert "2 classes of 24 images each.\nThe shorter side of a typical image has 100 pixels." in found
    assert "resnet18 from scratch, images of 64×64 pixels" in explain(recipe) and "--no-flip" in explain(recipe)
    assert "moved by up to 6 pixels" in explain(recipe) and "--weights imagenet" in explain(recipe)
    pretrained, _ = choose(data, "imagenet")
    assert (pretrained.weights, pretrained.image_size, pretrained.frozen_epochs) == ("imagenet", 224, 5)
    assert pretrained.epochs == 15
    assert pretrained.model == RECIPES["small_folder_pretrained"].recipe.model and "'imagenet'" in explain(pretrained)


def test_many_large_photos_are_not_kept_in_memory(tmp_path):
    data = load_data(str(folder_of(tmp_path, (3, 3), (100, 150))))
    object.__setattr__(data.train, "count", 10**5)
    assert not choose(data)[0].keep


def test_kept_images_are_the_same_ones_smaller(tmp_path):
    folder_of(tmp_path, (4, 4), (30, 45))
    Image.new("RGB", (400, 300), (9, 99, 199)).save(tmp_path / "class 0" / "large.png")
    examples = load_data(str(tmp_path)).train
    kept = keep(examples, (20, 20))
    assert kept.count == examples.count
    np.testing.assert_array_equal(kept.class_counts, examples.class_counts)
    order = [list(one.handles((1, 2)).as_numpy_iterator()) for one in (examples, kept)]
    assert order[0] == order[1]
    for number in range(kept.count):
        before, after = (one.read(np.int64(number)) for one in (examples, kept))
        assert before[1:] == after[1:]
        if before[0].shape[0] == 300:
            assert after[0].shape == (40, 53, 3)
            np.testing.assert_array_equal(np.unique(after[0].numpy().reshape(-1, 3), axis=0), [[9, 99, 199]])
        else:
            np.testing.assert_array_equal(before[0], after[0])


def test_batches_of_kept_images_are_the_same(tmp_path):
    data = load_data(str(folder_of(tmp_path, (10, 10), (12, 14))))
    recipe = Recipe(batch_size=4, image_size=12, padding=2, flip=True)
    plan = plan_of(recipe, data, network(recipe), 0)
    kept = [training_batches(examples, plan, ONE) for examples in (data.train, keep(data.train, plan.size))]
    for one, other in itertools.islice(zip(*kept, strict=True), 9):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    contract = plan.contract(3)
    held_out = [evaluation_batches(data.test, contract, 2, ONE, keep=kept) for kept in (False, True)]
    assert held_out[0][1] == held_out[1][1] == 1
    for one, other in itertools.islice(zip(held_out[0][0], held_out[1][0], strict=True), 3):
        np.testing.assert_array_equal(one[0], other[0])


def test_classes_weigh_as_the_square_roots_of_their_counts():
    labels = np.repeat([0, 1, 2], [40, 16, 8])
    examples = in_memory(np.zeros((64, 8, 8, 1), "uint8"), labels)
    np.testing.assert_array_equal(class_counts(examples, 3), [40, 16, 8])
    data = load_data("digits")
    object.__setattr__(data, "train", examples)
    object.__setattr__(data, "class_names", ("a", "b", "c"))
    recipe = Recipe(batch_size=64, balance=True)
    plan = plan_of(recipe, data, network(recipe), 0)
    _, targets = next(iter(training_batches(examples, plan, ONE)))
    roots = np.sqrt([40, 16, 8])
    np.testing.assert_allclose(targets.numpy().sum(0), 64 * roots / roots.sum(), rtol=1e-5)
    with pytest.raises(ValueError, match="balance is True; it must be False with the binary loss"):
        Recipe(balance=True, loss="binary")


def test_the_command_says_what_it_chose_and_loads_the_images_once(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "keras_resdense.training.train.train", lambda recipe, *_, data, **__: asked.append((recipe, data)) or 1 / 0
    )
    photos = str(folder_of(tmp_path, (12, 12), (10, 10)))
    assert main(["train", "--data", photos, "--epochs", "3"]) == 1
    said = capsys.readouterr().out
    assert "Chosen: resnet20 from scratch, images of 10×10 pixels, batches of 16, 3 epochs." in said
    recipe, data = asked[0]
    assert (recipe.data, recipe.epochs, recipe.model) == (photos, 3, "resnet20")
    assert data.train.count == 19
    assert main(["train", "--recipe", "fast", "--data", photos]) == 1
    assert asked[1][0].batch_size == RECIPES["fast"].recipe.batch_size and asked[1][1] is None
    assert "Chosen" not in capsys.readouterr().out
