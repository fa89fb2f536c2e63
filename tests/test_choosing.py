"""Recipes chosen for folders of images: what they follow from, and that rare classes weigh more."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resdense.__main__ import main
from keras_resdense.data.batches import class_counts, training_batches
from keras_resdense.data.examples import in_memory
from keras_resdense.data.sources import load_data
from keras_resdense.training.choosing import choose
from keras_resdense.training.classifier import network, plan_of
from keras_resdense.training.recipes import RECIPES, Recipe

ONE = tf.distribute.OneDeviceStrategy("/cpu:0")


def folder_of(root, counts, size):
    """Writes a folder of noisy images, so many of each class."""
    random = np.random.default_rng(0)
    for label, count in enumerate(counts):
        (root / f"class {label}").mkdir()
        for number in range(count):
            pixels = random.integers(0, 256, (*size, 3), "uint8")
            Image.fromarray(pixels).save(root / f"class {label}" / f"{number}.png")
    return root


def test_small_images_of_unbalanced_classes(tmp_path):
    data = load_data(str(folder_of(tmp_path, (100, 20), (28, 40))))
    recipe, words = choose(data)
    assert (recipe.model, recipe.image_size, recipe.crop, recipe.padding) == ("resnet20", 28, "none", 2)
    assert not recipe.flip and recipe.scaled(recipe.learning_rate) == recipe.learning_rate
    assert recipe.balance and recipe.batch_size == 8 and 15 <= recipe.epochs <= 100
    assert "96 images to train on, 2 classes of 16 to 80 images, shorter side 28 pixels" in words
    assert "--no-flip" in words and "rare classes weigh more" in words


def test_larger_images_of_balanced_classes(tmp_path):
    data = load_data(str(folder_of(tmp_path, (30, 30), (100, 150))))
    recipe, words = choose(data)
    assert (recipe.model, recipe.image_size, recipe.crop, recipe.balance) == ("resnet18", 96, "area", False)
    assert "resnet18 from scratch, 96 pixels, a random crop of each" in words
    pretrained, words = choose(data, "imagenet")
    assert (pretrained.weights, pretrained.image_size, pretrained.frozen_epochs) == ("imagenet", 224, 5)
    assert pretrained.model == RECIPES["small_folder_pretrained"].recipe.model and "'imagenet'" in words


def test_each_class_weighs_the_same():
    labels = np.repeat([0, 1, 2], [40, 16, 8])
    examples = in_memory(np.zeros((64, 8, 8, 1), "uint8"), labels)
    np.testing.assert_array_equal(class_counts(examples, 3), [40, 16, 8])
    data = load_data("digits")
    object.__setattr__(data, "train", examples)
    object.__setattr__(data, "class_names", ("a", "b", "c"))
    recipe = Recipe(batch_size=64, balance=True)
    plan = plan_of(recipe, data, network(recipe), 0)
    _, targets = next(iter(training_batches(examples, plan, ONE)))
    np.testing.assert_allclose(targets.numpy().sum(0), [64 / 3] * 3, rtol=1e-5)
    with pytest.raises(ValueError, match="balance is True; it must be False with the binary loss"):
        Recipe(balance=True, loss="binary")


def test_the_command_says_what_it_chose(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("keras_resdense.training.train.train", lambda recipe, *_, **__: asked.append(recipe) or 1 / 0)
    photos = str(folder_of(tmp_path, (12, 12), (10, 10)))
    assert main(["train", "--data", photos, "--epochs", "3"]) == 1
    assert "Chosen: recipe small_folder, resnet20" in capsys.readouterr().out
    assert (asked[0].data, asked[0].epochs, asked[0].model) == (photos, 3, "resnet20")
    assert main(["train", "--recipe", "fast", "--data", photos]) == 1
    assert asked[1].batch_size == RECIPES["fast"].recipe.batch_size and "Chosen" not in capsys.readouterr().out
