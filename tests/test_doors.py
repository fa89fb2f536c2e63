"""One picture, one answer: an image file gets the same answer from a network by every door.

Two small networks, which recognise two photographs and their orientation, classify every file of `golden/awkward/`. A
door that ignores orientation, transparency, channels or crop gives another answer. The page in the browser is
one more door, in `test_web.py`.
"""

import dataclasses
import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resdense
from keras_resdense import ImageContract, runs
from keras_resdense.__main__ import main
from keras_resdense.exporting.formats import EXPORTERS
from tests.awkward_images import FOLDER, photograph
from tests.zoo_facts import sweep

#: The class of a photograph that stands k quarters of a turn to the left is k or k + 4.
CLASSES = [f"{name} {way}" for name in ("china", "flower") for way in ("upright", "left", "down", "right")]
FILES = sorted(FOLDER.iterdir())
#: How far probabilities may be apart.
TOLERANCE = 1e-3
#: Formats that compute in float32.
EXACT = ("keras", "tflite", "tflite_float16", "saved_model", "saved_model_frozen", "onnx", "openvino")
COLOUR = ImageContract(size=(32, 32), resize="shorter_side", crop=0.875, interpolation="bicubic")
GREY = ImageContract(size=(32, 32), channels=1, mean=(127.5,), std=(127.5,))
#: ResNet-8 learns to tell the photographs apart in a third of the time of ResNet-20.
SHALLOW = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], depths=(1, 1, 1))


def crops(count):
    """Returns pixels `(count, 32, 32, 3)` of turned pieces of the photographs, and their classes."""
    random = np.random.default_rng(0)
    classes, images = random.integers(0, len(CLASSES), count), []
    for number in classes:
        picture = np.asarray(photograph(CLASSES[number].split()[0], 60, 40))
        side = random.integers(30, 41)
        top, left = random.integers(0, 41 - side), random.integers(0, 61 - side)
        images.append(np.rot90(picture[top : top + side, left : left + side], number % 4))
    return keras_resdense.transform(ImageContract(size=(32, 32)))(images), classes


@functools.cache
def trained():
    """Returns a trained network that takes pixels in colour."""
    keras.utils.set_random_seed(0)
    model = keras_resdense.create_model(SHALLOW, input_shape=(32, 32, 3), classes=8, include_preprocessing="half")
    images, classes = crops(512)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(images, keras.utils.to_categorical(classes, 8), batch_size=32, epochs=5, verbose=0)
    model.image_contract, model.class_names = COLOUR, tuple(CLASSES)
    return model


@pytest.fixture(scope="module", params=["colour", pytest.param("grey", marks=pytest.mark.sweep)])
def model(request):
    """Returns the network, or the same for normalised grey: it computes what the other one does of grey in RGB."""
    if request.param == "colour":
        return trained()
    grey = keras_resdense.create_model(SHALLOW, input_shape=(32, 32, 1), classes=8)
    kernel, *others = trained().get_weights()
    grey.set_weights([kernel.sum(axis=2, keepdims=True), *others])
    grey.image_contract, grey.class_names = GREY, tuple(CLASSES)
    return grey


@pytest.fixture(scope="module")
def expected(model):
    return answers_in_python(model)


def answers_in_python(model):
    """Returns what `keras_resdense.transform` and a network answer to each file: probabilities."""
    return dict(zip(FILES, model.predict(keras_resdense.transform(model)(FILES), verbose=0), strict=True))


def exported(model, folder, format):
    path = folder / EXPORTERS[format].file_name
    images = crops(100)[0]
    images = keras_resdense.transform(model.image_contract)(images)
    return keras_resdense.export(model, path, format, images, calibration=images).path


def in_half_precision(model):
    """Returns the network of a file with weights in half precision: what their rounding costs is no door's doing."""
    half = keras_resdense.fold_batch_norm(model)
    half.set_weights([weight.astype("float16").astype("float32") for weight in half.get_weights()])
    return half


def assert_same(answers, expected):
    """Compares probabilities, one row a file."""
    for file, probabilities in answers.items():
        assert np.argmax(probabilities) == np.argmax(expected[file]), file.name
        np.testing.assert_allclose(probabilities, expected[file], rtol=0, atol=TOLERANCE, err_msg=file.name)


def by_class(answers):
    """Returns the probabilities of `runs.predict`, or of what the command line prints, in the order of the classes."""
    return {file: [ranked[name] for name in CLASSES] for file, ranked in answers.items()}


def test_photographs_are_known_and_upright():
    """Without this, all doors could agree on a wrong answer."""
    answers = answers_in_python(trained())
    files = [file for file in FILES if file.name.startswith(("exif_", "jpeg_", "xmp_", "rgb_", "megapixels_"))]
    files = [file for file in files if "grey" not in file.name]
    assert len(files) > 50
    for file in files:
        assert CLASSES[np.argmax(answers[file])] == f"{file.stem.rpartition('_')[2]} upright", file.name


@pytest.mark.parametrize("format", sweep(EXACT, {"keras", "tflite", "onnx"}))
def test_the_command_line_answers_alike_with_files_of_every_format(model, expected, tmp_path, capsys, format):
    path = exported(model, tmp_path, format)
    capsys.readouterr()
    assert main(["predict", str(path), str(FOLDER), "--top", str(len(CLASSES)), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    answers = by_class({Path(answer["image"]): answer["classes"] for answer in printed})
    assert list(answers) == FILES
    assert_same(answers, answers_in_python(in_half_precision(model)) if format == "tflite_float16" else expected)


def test_the_endpoint_for_files_answers_alike_or_refuses(model, expected, tmp_path):
    served = tf.saved_model.load(exported(model, tmp_path, "saved_model"))
    made = served.signatures["serve_images"](encoded=tf.constant([file.read_bytes() for file in FILES]))
    valid = made["valid"].numpy()
    for file, is_valid in zip(FILES, valid, strict=True):
        can_read = file.name.endswith((".jpg", ".jpeg", ".png")) and "unmarked" not in file.name
        assert is_valid == can_read, file.name
    outputs = made["outputs"].numpy()
    assert np.isnan(outputs[~valid]).all()
    assert_same({file: row for file, row, known in zip(FILES, outputs, valid, strict=True) if known}, expected)


def test_bytes_answer_alike(tmp_path):
    """8-bit networks have errors of their own, so classes must be equal only for clear answers."""
    path, expected = exported(trained(), tmp_path, "tflite_int8"), answers_in_python(trained())
    answers = by_class({file: dict(ranked) for file, ranked in runs.predict(path, FILES, top=len(CLASSES))})
    for file, probabilities in answers.items():
        second, first = np.sort(expected[file])[-2:]
        if first - second > 0.1:
            assert np.argmax(probabilities) == np.argmax(expected[file]), file.name
