"""The page of `examples/web`, in headless Chromium: its answers are Python's, and it can be used.

Needs Chromium, npm and playwright.
"""

import dataclasses
import re
import shutil
import subprocess

import numpy as np
import pytest

import keras_resdense
from examples.web import check
from keras_resdense import ImageContract
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.training.recipes import Recipe
from tests import test_doors

pytestmark = pytest.mark.sweep

#: What no Chromium opens.
NOT_READ = (".tiff", ".ppm")
AWKWARD_FILES = [file for file in test_doors.FILES if file.suffix not in NOT_READ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a short run on the digits."""
    subprocess.run(["npm", "ci"], cwd=check.WEB, check=True)
    folder = tmp_path_factory.mktemp("runs")
    return keras_resdense.train(Recipe(model="resnet20", epochs=4), folder=str(folder)).folder


@pytest.fixture
def page(run):
    with check.opened_page(run) as page:
        page.evaluate("import('./page.js')")
        yield page


@pytest.fixture
def copy(run, tmp_path):
    """Returns a folder with the run's files, to be changed."""
    return shutil.copytree(run, tmp_path / "copy")


def expect(found):
    """Waits for what is expected of something on the page."""
    # Not above: it is no part of the test extra, and without it all other tests must be found.
    from playwright.sync_api import expect

    return expect(found)


def cleared(page):
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("listitem")).to_have_count(0)
    return page


def canvas(page):
    """Returns the brightness of the canvas, `(8, 8)`."""
    script = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 8, 8).data]"
    return np.reshape(page.locator("canvas").evaluate(script), (8, 8, 4))[..., 0]


def assert_answered(page):
    expect(page.get_by_role("listitem")).to_have_count(5)
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^\d, in \d+\.\d ms\.$"))
    shares = [float(share) for share in page.locator("data").evaluate_all("shares => shares.map(share => share.value)")]
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1 + 1e-6


def test_answers_are_pythons(run, tmp_path):
    made = check.compare(run, check.write_test_images(run, tmp_path))
    assert made.difference < 1e-4
    assert made.agreement == 1
    assert check.IMAGES == 50


CONTRACTS = {
    "squash": ImageContract(size=(8, 8), channels=1),
    "crop": ImageContract(size=(8, 8), channels=1, resize="shorter_side", crop=0.8, interpolation="bicubic"),
    "wide": ImageContract(size=(8, 13), channels=1, resize="shorter_side", interpolation="bicubic"),
}


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_images_are_prepared_as_in_python(copy, contract):
    model = keras_resdense.ResNet20(input_shape=(*contract.size, 1))
    model.image_contract = contract
    keras_resdense.export(model, copy / "model.tflite", "tflite", overwrite=True)
    differences = []
    with check.opened_page(copy) as page:
        for file in AWKWARD_FILES:
            (expected,) = keras_resdense.transform(contract)(file)
            seen = np.reshape(check.open_file(page, file)["pixels"], (*contract.size, 4))[..., :1]
            differences.append(np.abs(seen - expected).max())
    # Numbers in the middle between two are rounded by chance, once for each axis.
    assert max(differences) <= 2
    assert np.mean(np.array(differences) == 0) > 0.8


def test_awkward_images_get_the_answers_of_all_other_doors(tmp_path):
    model = test_doors.trained()
    test_doors.exported(model, tmp_path, "tflite")
    with check.opened_page(tmp_path) as page:
        answers = {file: check.open_file(page, file)["probabilities"] for file in AWKWARD_FILES}
    test_doors.assert_same(answers, test_doors.answers_in_python(model))


@pytest.mark.parametrize(
    "file", [file for file in test_doors.FILES if file.suffix in NOT_READ], ids=lambda file: file.name
)
def test_what_the_browser_cannot_open_is_refused(page, file):
    cleared(page).get_by_role("button", name="Bag").click()
    assert_answered(page)
    page.get_by_label("Choose a file").set_input_files(file)
    expect(page.get_by_role("status")).to_have_text(re.compile(f"^{file.name}: .*could not be decoded"))
    expect(page.get_by_role("listitem")).to_have_count(0)
    assert (canvas(page) == 0).all()


def test_a_sample_by_keyboard(page):
    cleared(page).get_by_role("button", name="Sneaker").focus()
    page.keyboard.press("Enter")
    assert_answered(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Bag")).to_be_focused()


def test_a_chosen_file(page):
    cleared(page).get_by_label("Choose a file").set_input_files(check.WEB / "samples/bag.png")
    assert_answered(page)


def test_a_dropped_file(page):
    dropped = """async (name) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([await (await fetch(name)).blob()], name));
      return transfer;
    }"""
    for name in ("samples/bag.png", "page.js"):
        transfer = page.evaluate_handle(dropped, name)
        cleared(page).dispatch_event("body", "drop", {"dataTransfer": transfer})
        if name.endswith(".png"):
            assert_answered(page)
    expect(page.get_by_role("status")).to_have_text(re.compile("^page.js: .*could not be decoded"))


def test_a_drawing(page):
    box = cleared(page).get_by_role("img", name="The image as the network sees it").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 20, steps=5)
    page.mouse.up()
    assert_answered(page)
    drawn = canvas(page)
    assert drawn[1:-1, 3:5].min() > 0
    assert drawn[:, :2].max() == drawn[:, 6:].max() == 0
    page.get_by_role("button", name="Invert").click()
    assert (canvas(page) == 255 - drawn).all()


def test_it_fits_a_phone_and_asks_nobody_else(page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 320, "height": 640})
    page.reload()
    expect(page.get_by_role("listitem")).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert any(url.endswith(".wasm") for url in asked)
    assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {page.url.split("/")[2]}


@pytest.mark.parametrize(
    ("content", "message"), [(None, "There is no /run/model.tflite"), (b"damaged", "cannot be run")]
)
def test_a_network_that_cannot_be_run(copy, content, message):
    (copy / "model.tflite").unlink()
    if content:
        (copy / "model.tflite").write_bytes(content)
    with check.opened_page(copy) as page:
        expect(page.get_by_role("status")).to_contain_text(message)
        expect(page.get_by_role("button", name="Sneaker")).to_be_disabled()


@pytest.mark.parametrize(
    "exporter", [dataclasses.replace(EXPORTERS["tflite"], pixels="uint8"), EXPORTERS["tflite_int8"]]
)
def test_a_network_of_bytes_answers_as_in_python(run, copy, tmp_path, exporter):
    images = keras_resdense.load_data().test.read(np.arange(99))[0].numpy()
    model = keras_resdense.load_model(run / "model.keras")
    keras_resdense.export(model, copy / "model.tflite", exporter, images, calibration=images, overwrite=True)
    made = check.compare(copy, check.write_test_images(run, tmp_path))
    assert made.difference < 1e-4
    assert made.agreement == 1


def test_a_network_in_colour(copy):
    """It knows its classes, has no samples, and sees what `keras_resdense.transform` makes of a photograph."""
    contract = ImageContract(size=(32, 32), order="bgr", mean=(100.0, 120.0, 140.0), std=(60.0, 50.0, 40.0))
    model = keras_resdense.ResNet20(input_shape=(32, 32, 3), classes=3)
    model.image_contract, model.class_names = contract, ("cat", "dog", "狗")
    keras_resdense.export(model, copy / "model.tflite", "tflite", overwrite=True)
    (expected,) = model.predict(keras_resdense.transform(contract)(AWKWARD_FILES[0]), verbose=0)
    with check.opened_page(copy) as page:
        expect(page.get_by_text("This network can tell apart: cat, dog, 狗.")).to_be_visible()
        expect(page.get_by_role("button", name="Sneaker")).to_be_hidden()
        answer = check.open_file(page, AWKWARD_FILES[0])
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-4)
        expect(page.get_by_role("listitem")).to_have_count(3)


def test_a_network_without_a_contract_is_refused(copy):
    model = keras_resdense.ResNet20(input_shape=(8, 8, 1))
    keras_resdense.export(model, copy / "model.tflite", "tflite", overwrite=True)
    with check.opened_page(copy) as page:
        expect(page.get_by_role("status")).to_contain_text("does not say how to prepare images")
        expect(page.get_by_role("button", name="Sneaker")).to_be_disabled()
