"""Crops and augmentation: equal to timm and Pillow, and determined by the key alone."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from keras_resdense.data import augment, crops, rand_augment as module, resizing
from keras_resdense.data.rand_augment import OPERATIONS, Operation, rand_augment

GOLDEN = np.load(Path(__file__).parent / "golden" / "augment.npz")
PHOTO = GOLDEN["photo"].astype("float32")
CASES = [name for name in GOLDEN.files if name != "photo"]


def key(number, seed=0):
    return tf.constant([seed, number * augment.DRAWS], tf.int64)


def many(step, count=400):
    """Returns the results of a step for many keys."""
    numbers = tf.data.Dataset.range(count)
    made = numbers.map(lambda number: step(tf.stack([0 * number, number * augment.DRAWS])), tf.data.AUTOTUNE)
    return next(iter(made.batch(count))).numpy()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, "uint8")


@pytest.mark.parametrize("case", CASES)
def test_an_operation_gives_timm_s_pixels(case):
    name, magnitude, sign = case.split()
    found = OPERATIONS[name](tf.constant(PHOTO), tf.constant(float(magnitude)), tf.constant(float(sign)))
    difference = np.abs(found.numpy() - GOLDEN[case])
    assert difference.max() <= 1
    # It goes from grey through colours without rounding the grey, as Pillow does.
    assert difference.mean() < (0.3 if name.startswith("Color") else 0.03)


def test_the_operations_are_timm_s_and_have_names_of_their_own():
    assert list(OPERATIONS) == list(dict.fromkeys(case.split()[0] for case in CASES))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AutoContrast", lambda image: ImageOps.autocontrast(image)),
        ("Equalize", lambda image: ImageOps.equalize(image)),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_channels_of_one_value_stay(name, expected, flat):
    pixels = np.full((9, 7, 3), 31, "uint8")
    if not flat:
        pixels[..., 1:] = noise(9, 7, 2)
    found = OPERATIONS[name](tf.constant(pixels, tf.float32), 1.0, 1.0).numpy()
    assert np.abs(found - np.asarray(expected(Image.fromarray(pixels)))).max() <= 1


def test_rand_augment_happens_as_often_as_timm_s_and_hangs_on_its_key():
    image = tf.constant(PHOTO)
    found = many(lambda k: rand_augment(image, 7.0, k), 500)
    # Each of two operations happens half of the time.
    assert 0.20 < (found == PHOTO).all((1, 2, 3)).mean() < 0.34
    assert (found == found.round()).all() and found.min() >= 0 and found.max() <= 255
    np.testing.assert_array_equal(found[:40], many(lambda k: rand_augment(image, 7.0, k), 40))


def test_an_operation_happens_half_of_the_time_with_a_magnitude_that_scatters(monkeypatch):
    probe = Operation(apply=lambda image, strength: image + strength, strength=lambda magnitude, sign: 10 * magnitude)
    monkeypatch.setattr(module, "OPERATIONS", {"probe": probe})
    found = many(lambda k: rand_augment(tf.zeros((1, 1, 1)), 7.0, k), 4000).ravel()
    once = found[(found > 0) & (found < 105)]
    assert (found == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert len(once) / 4000 == pytest.approx(0.5, abs=0.03)
    assert once.mean() == pytest.approx(70, abs=0.5) and once.std() == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("channels", [1, 2])
def test_images_need_not_be_coloured(channels):
    image = tf.constant(noise(16, 20, channels), tf.float32)
    for operation in OPERATIONS.values():
        assert operation(image, tf.constant(7.0), tf.constant(1.0)).shape == image.shape
    grey = Image.fromarray(image.numpy()[..., 0].astype("uint8"))
    for name in ("Sharpness", "Contrast"):
        expected = getattr(ImageEnhance, name)(grey).enhance(1.63)
        found = OPERATIONS[f"{name}Increasing"](image[..., :1], tf.constant(7.0), tf.constant(1.0))
        assert np.abs(found.numpy()[..., 0] - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("shape", [(60, 80, 3), (80, 60, 1), (32, 32, 3), (5, 90, 3)], ids=str)
@pytest.mark.parametrize("crop", crops.CROPS)
def test_a_crop_is_tensorflow_s_resizing_of_its_part(crop, shape):
    image, size = noise(*shape), (32, 48)
    for number in range(5):
        view = crops.CROPS[crop](tf.constant(shape), size, key(number))
        found = view.of(crops.part_of(tf.constant(image))(view.window), size).numpy()
        if crop == "scale":
            target = np.round(view.scale * shape[:2]).astype(int)
            resized = tf.image.resize(image, target, antialias=True).numpy()
            places = [(top, left) for top in range(target[0] - size[0] + 1) for left in range(target[1] - size[1] + 1)]
            differences = [np.abs(resized[y : y + 32, x : x + 48] - found).max() for y, x in places]
            assert min(differences) < 0.01
        else:
            top, left, height, width = (0, 0, *shape[:2]) if view.window is None else view.window.numpy()
            part = image[top : top + height, left : left + width]
            np.testing.assert_allclose(found, tf.image.resize(part, size, antialias=True), atol=0.01)


def test_a_crop_is_pillow_s_to_a_level():
    image = Image.fromarray(noise(60, 80, 3)).resize((400, 300), Image.Resampling.BICUBIC)
    view = crops.area(tf.constant((300, 400, 3)), (64, 64), key(3))
    top, left, height, width = view.window.numpy()
    expected = image.crop((left, top, left + width, top + height)).resize((64, 64), Image.Resampling.BILINEAR)
    found = view.of(crops.part_of(tf.constant(np.asarray(image)))(view.window), (64, 64)).numpy()
    assert min(height, width) > 64
    assert np.abs(found - np.asarray(expected)).max() <= 1


def test_large_images_are_resized_alike(monkeypatch):
    """They are split among threads."""
    alone = resizing.scaled_rows(noise(40, 60, 3), 30, 0.75, 0.5)
    monkeypatch.setattr(resizing, "_LARGE", 0)
    np.testing.assert_array_equal(resizing.scaled_rows(noise(40, 60, 3), 30, 0.75, 0.5), alone)


def test_crops_are_as_large_as_published():
    shares = many(lambda k: tf.cast(tf.reduce_prod(crops.area((300, 400, 3), (64, 64), k).window[2:]), tf.float32))
    assert 0.08 < shares.min() / 120_000 < 0.12 and 0.9 < shares.max() / 120_000 <= 1
    scales = many(lambda k: crops.scale((300, 400, 3), (224, 224), k).scale[0]) * 300 / 224
    assert 256 / 224 - 0.01 < scales.min() < 1.2 and 2.1 < scales.max() < 480 / 224 + 0.01


def test_images_are_mirrored_half_of_the_time():
    image = tf.constant(PHOTO)
    found = many(lambda k: augment.flipped(image, k))
    mirrored = (found == PHOTO[:, ::-1]).all((1, 2, 3))
    assert 0.4 < mirrored.mean() < 0.6
    np.testing.assert_array_equal(found[~mirrored], np.broadcast_to(PHOTO, found[~mirrored].shape))


def test_a_rectangle_is_erased_half_of_the_time():
    image = tf.constant(PHOTO)
    changed = (many(lambda k: augment.erased(image, k), 1000) != PHOTO).any(-1)
    erased = changed[changed.any((1, 2))]
    assert 440 < len(erased) < 560
    for mask in erased:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.9  # of noise, some pixels are what they were
        assert 0.01 < box.size / mask.size < 0.36


def group(count=8):
    images = tf.constant(np.arange(count, dtype="float32")[:, None, None, None] * np.ones((1, 12, 16, 3), "float32"))
    return images, tf.eye(count)


def test_mixup_blends_images_as_it_blends_classes():
    images, labels = group()
    mixed, targets = augment.mixup(images, labels, 1.0, key(1))
    np.testing.assert_allclose(targets.numpy().sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(
        mixed.numpy(), (targets.numpy() @ np.arange(8.0))[:, None, None, None] + 0 * images, atol=1e-4
    )
    assert (targets.numpy().max(1) < 0.99).sum() >= 4


@pytest.mark.parametrize("alpha", [0.1, 1.0, 50.0])
def test_mixup_draws_from_a_beta_distribution(alpha):
    labels = tf.eye(2)
    shares = many(lambda k: augment._shares(labels, alpha, k)).ravel()
    assert abs(shares.mean() - 0.5) < 0.06
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_cutmix_weighs_classes_by_area_exactly():
    images, labels = group()
    for number in range(20):
        mixed, targets = augment.cutmix(images, labels, 1.0, key(number))
        seen = (mixed.numpy()[..., 0, None].round() == np.arange(8)).mean((1, 2))
        np.testing.assert_allclose(targets, seen, atol=1e-5)
