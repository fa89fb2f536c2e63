"""The image contract as data, in files, and applied to images."""

import dataclasses
import io
import threading
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

import keras_resdense
from keras_resdense import ImageContract
from keras_resdense.data.contract import attached
from keras_resdense.data.decoding import decode_image
from keras_resdense.data.graph_decoding import decode_in_graph
from keras_resdense.pretrained.catalogue import published_weights

AWKWARD = sorted((Path(__file__).parent / "golden" / "awkward").iterdir())
CONTRACT = ImageContract(
    size=(224, 160),
    order="bgr",
    resize="shorter_side",
    crop=0.875,
    interpolation="bicubic",
    mean=(103.939, 116.779, 123.68),
)
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 20, 3), "uint8")


def test_json_makes_the_contract_again():
    assert ImageContract.from_json(CONTRACT.to_json()) == CONTRACT
    for wrong in ("", "{}", "[1]", CONTRACT.to_json().replace("exif", "none"), CONTRACT.to_json().replace("bgr", "b")):
        with pytest.raises(ValueError):
            ImageContract.from_json(wrong)


@pytest.mark.parametrize(
    "wrong", [{"size": (0, 8)}, {"crop": 0.0}, {"resize": "fit"}, {"std": (1.0, 0.0, 1.0)}], ids=str
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match=f"ImageContract.{next(iter(wrong))} is "):
        dataclasses.replace(CONTRACT, **wrong)


def test_a_sentence_says_what_to_do():
    assert CONTRACT.describe() == (
        "To prepare an image, turn it upright as its EXIF orientation says, blend transparent pixels with white, "
        "convert it to BGR, resize it to cover 256 × 182 pixels (bicubic, antialiased), keep the middle 224 × 160, and "
        "subtract 103.939, 116.779, 123.68 from values 0–255 and divide by 1."
    )


def test_every_published_set_has_a_contract_for_both_of_its_sizes():
    for found in published_weights():
        at_test, in_training = found.contract(), found.contract(found.train_size)
        assert at_test.size == (found.input_size,) * 2 and in_training.size == (found.train_size,) * 2
        if found.publisher == "timm":
            assert at_test.crop == found.crop
            assert in_training.interpolation == found.interpolation


@pytest.mark.parametrize("file", AWKWARD, ids=lambda file: file.name)
def test_a_graph_decodes_like_pillow_or_refuses(file):
    encoded = file.read_bytes()
    if not encoded.startswith((b"\xff\xd8\xff", b"\x89PNG")) or "unmarked" in file.name:
        with pytest.raises(tf.errors.InvalidArgumentError, match="convert it"):
            decode_in_graph(tf.constant(encoded))
        return
    np.testing.assert_array_equal(decode_in_graph(tf.constant(encoded)), decode_image(encoded))


@pytest.mark.parametrize(
    "file",
    [file for file in AWKWARD if "exif_" in file.name and "raw_profile" not in file.name],
    ids=lambda file: file.name,
)
def test_orientation_is_pillow_s(file):
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(file.read_bytes()), expected)


def test_decoding_in_threads_leaves_warnings_on():
    encoded = [file.read_bytes() for file in AWKWARD]
    threads = [threading.Thread(target=lambda: [decode_image(file) for file in encoded]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_formats_that_run_programs_are_not_opened():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n"
    with pytest.raises(ValueError, match="not an image"):
        decode_image(eps)


def test_files_bytes_and_arrays_become_the_same_batch(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(buffer.getvalue())
    transform = keras_resdense.transform(CONTRACT)
    batch = transform([path, str(path), buffer.getvalue(), PIXELS, PIXELS.astype("float32")])
    assert batch.shape == (5, 224, 160, 3) and batch.dtype == np.float32
    for other in batch[1:]:
        np.testing.assert_array_equal(batch[0], other)
    np.testing.assert_array_equal(transform(path), batch[:1])
    np.testing.assert_array_equal(transform(PIXELS[None]), batch[:1])
    grey = keras_resdense.transform(ImageContract(size=(30, 20), channels=1))(path)
    np.testing.assert_array_equal(grey[0, ..., 0], np.asarray(Image.fromarray(PIXELS).convert("L")))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (PIXELS / 255, "multiply it by 255"),
        (PIXELS.astype("float32") - 10, "pixels are 0–255"),
        (np.zeros((4, 4, 2)), "it must be"),
        (b"no image", "not an image"),
    ],
    ids=["none", "to 1", "below 0", "two channels", "text"],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        keras_resdense.transform(CONTRACT)(images)


def test_a_bad_file_is_named(tmp_path):
    (tmp_path / "letter.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"letter\.jpg: not an image"):
        keras_resdense.transform(CONTRACT)(tmp_path / "letter.jpg")


def test_a_model_without_a_contract_says_what_to_do():
    with pytest.raises(ValueError, match="resnet20.* carries no image contract"):
        keras_resdense.transform(keras_resdense.ResNet20())


def test_a_keras_file_carries_contract_and_names_and_opens_in_plain_keras(tmp_path):
    model = keras_resdense.ResNet20(input_shape=(8, 8, 3), classes=2)
    model.image_contract, model.class_names = ImageContract(size=(8, 8)), ("cat", "狗")
    model.save(tmp_path / "model.keras")
    assert attached(tmp_path / "model.keras") == (model.image_contract, model.class_names)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert archive.read("image_contract.json").decode() == model.image_contract.to_json()
        assert archive.read("labels.txt").decode() == "cat\n狗\n"
    assert keras_resdense.transform(tmp_path / "model.keras").contract == model.image_contract
    model.class_names = ("cat", "d\nog")
    with pytest.raises(ValueError, match="every name must be one line"):
        model.save(tmp_path / "other.keras")
    model.class_names = ("cat", "狗")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    plain = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(plain.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-5)
    assert keras_resdense.fold_batch_norm(model).class_names == model.class_names
