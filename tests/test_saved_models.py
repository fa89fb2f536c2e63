"""The committed models have the accuracy that their cards state."""

import json

import keras
import numpy as np
import pytest

from keras_resdense import runs
from keras_resdense.exporting.read import load_runner
from keras_resdense.networks import zoo
from keras_resdense.training import recipes
from tests.zoo_facts import ROOT

RUNS = {"resnet20_fashion_mnist": "resnet20", "densenetbc40_12_fashion_mnist": "densenetbc40_12"}
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1)).astype("float32")


@pytest.fixture(params=RUNS)
def run(request):
    return ROOT / "saved_models" / request.param


def test_card_tells_what_was_measured(run):
    results, card = json.loads((run / "run.json").read_text()), (run / "README.md").read_text()
    confusion = np.array(results["confusion"])
    assert results["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert f"{results['accuracy']:.2%} of the {confusion.sum():,} held-out images" in card
    assert f"{results['accuracy']:.2%}" in (ROOT / "saved_models" / "README.md").read_text()


def test_files_agree_and_are_the_variant(run):
    variant = RUNS[run.name]
    assert recipes.read(run / recipes.RECIPE_FILE)[0].model == variant
    model = keras.saving.load_model(run / "model.keras")
    expected = model.predict(IMAGES, verbose=0)
    network = zoo.create_model(variant, weights=str(run / "model.keras"), input_shape=IMAGES.shape[1:], classes=10)
    normalised = model.get_layer("normalise")(IMAGES)
    np.testing.assert_allclose(network.predict(normalised, verbose=0), expected, atol=1e-5)
    run_tflite = load_runner(run / "model.tflite")
    np.testing.assert_allclose(run_tflite(IMAGES), expected, atol=1e-5)


@pytest.mark.sweep
def test_accuracy_is_what_the_card_says(run):
    """Needs Fashion-MNIST in the folder of TFDS."""
    results = json.loads((run / "run.json").read_text())
    assert runs.evaluate(run)["accuracy"] == pytest.approx(results["accuracy"], abs=2e-4)
