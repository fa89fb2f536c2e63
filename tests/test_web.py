"""The page of `examples/web` in headless Chromium: it gives Python's answers, and it can be used and installed.

Needs Chromium, npm and playwright.
"""

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

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
    """Returns a copy of the run's folder, which a test may change."""
    return shutil.copytree(run, tmp_path / "copy")


def expect(found):
    """Waits until an element of the page is as expected."""
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
    """The page knows its classes, has no samples, and prepares a photograph as `keras_resdense.transform` does."""
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


#: Waits until the page that is kept on the device has a text.
WAIT_FOR = """async (text) => {
  const kept = async () => (await (await caches.match("./"))?.text()) ?? "";
  while (!(await kept()).includes(text)) {
    await new Promise((done) => setTimeout(done, 100));
  }
}"""
#: The camera's picture, which is not square and of another size than any network.
FRAME = (480, 640)


@pytest.fixture(scope="module")
def built(run, tmp_path_factory):
    """Returns the page built from the run's files."""
    folder = tmp_path_factory.mktemp("built") / "site"
    build(run, "--title", "Which <digit>?", "--to", folder)
    return folder


def build(*words, fails=False):
    """Runs `npm run build` and returns its output."""
    command = ["npm", "run", "build", "--silent", "--", *map(str, words)]
    done = subprocess.run(command, cwd=check.WEB, capture_output=True, text=True)
    assert bool(done.returncode) == fails, done.stderr
    return done.stderr if fails else done.stdout


@contextlib.contextmanager
def phone(folder, *arguments, **options):
    """Yields a browser with a phone's settings, the address of a folder, and a function that stops the server."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, contextlib.ExitStack() as stack:
        device = playwright.devices["Pixel 7"] | options
        launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        with contextlib.ExitStack() as server, launched as browser:
            port = server.enter_context(check.served(str(folder)))
            context = stack.enter_context(browser.new_context(**device))
            page = context.new_page()
            page.goto(f"http://localhost:{port}/")
            yield page, server.close


@pytest.fixture
def digit(run, tmp_path):
    """Returns a held-out digit as a file of the size of a phone's camera pictures."""
    (first, *_) = check.write_test_images(run, tmp_path)
    Image.open(first).resize(FRAME[::-1], Image.NEAREST).convert("RGB").save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def write_video(picture, path):
    """Writes a second of a still picture as YUV4MPEG2, which Chromium takes for a camera."""
    planes = np.asarray(Image.open(picture).convert("YCbCr"))
    frame = planes[..., 0].tobytes() + planes[::2, ::2, 1].tobytes() + planes[::2, ::2, 2].tobytes()
    head = f"YUV4MPEG2 W{FRAME[1]} H{FRAME[0]} F10:1 Ip A1:1 C420jpeg\n".encode()
    path.write_bytes(head + (b"FRAME\n" + frame) * 10)
    return path


def test_a_runs_own_page_is_installed_and_works_without_a_network(built, digit, run):
    (expected,) = (ranked[0][0] for _, ranked in keras_resdense.runs.predict(run / "model.tflite", [digit], top=1))
    with phone(built) as (page, end_server):
        expect(page.locator("#offline")).to_have_text("This page now works without a network, too.")
        session = page.context.new_cdp_session(page)
        found = {error["errorId"] for error in session.send("Page.getInstallabilityErrors")["installabilityErrors"]}
        assert found <= {"in-incognito"}  # playwright's pages are private
        assert session.send("Page.getAppManifest")["errors"] == []
        end_server()
        page.reload()
        page.get_by_label("Choose a file").set_input_files(digit)
        expect(page.get_by_role("listitem").first).to_contain_text(expected)
        expect(page.get_by_role("heading", level=1)).to_have_text("Which <digit>?")
        expect(page.locator("#classes")).to_have_text(re.compile("0, 1, 2, 3, 4, 5, 6, 7, 8, 9"))
        expect(page.get_by_text("Fashion-MNIST")).to_have_count(0)


def test_a_new_build_takes_the_place_of_the_old(built, run, tmp_path):
    site = shutil.copytree(built, tmp_path / "site")
    with phone(site) as (page, _):
        expect(page.locator("#offline")).not_to_be_empty()
        build(run, "--title", "Newer", "--to", site)
        page.reload()
        page.evaluate(WAIT_FOR, "Newer")
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_have_text("Newer")


def test_the_camera_is_watched_by_touch(built, digit, run, tmp_path):
    (expected,) = (ranked[0][0] for _, ranked in keras_resdense.runs.predict(run / "model.tflite", [digit], top=1))
    video = write_video(digit, tmp_path / "camera.y4m")
    arguments = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with phone(built, *arguments, f"--use-file-for-fake-video-capture={video}") as (page, _):
        page.get_by_role("button", name="Camera").tap()
        expect(page.get_by_role("button", name="Stop")).to_have_attribute("aria-pressed", "true")
        expect(page.get_by_role("listitem").first).to_contain_text(expected)
        seen, (shown,) = canvas(page).astype(int), keras_resdense.transform(run)(digit)
        assert np.abs(seen - shown[..., 0]).mean() < 8  # a camera's colours are rounded twice
        page.get_by_role("button", name="Stop").tap()
        expect(page.get_by_role("button", name="Camera")).to_have_attribute("aria-pressed", "false")
        expect(page.get_by_role("listitem").first).to_contain_text(expected)


def test_a_phone_without_a_camera_says_what_to_do(built):
    with phone(built) as (page, _):
        page.get_by_role("button", name="Camera").tap()
        expect(page.get_by_role("status")).to_contain_text(re.compile("choose a file", re.IGNORECASE))
        expect(page.get_by_role("listitem")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_built_page_is_accessible_and_fits(built, scheme):
    """It follows the rules of axe, which Lighthouse also uses: contrast, labels, names, landmarks."""
    with phone(built, color_scheme=scheme) as (page, _):
        expect(page.locator("#offline")).not_to_be_empty()
        page.add_script_tag(path=check.WEB / "node_modules/axe-core/axe.min.js")
        found = page.evaluate("axe.run()")
        assert {rule["id"] for rule in found["passes"]} >= {"color-contrast", "label", "button-name", "meta-viewport"}
        assert [(rule["id"], rule["help"]) for rule in found["violations"]] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        sides = page.locator("button:visible, label").evaluate_all("all => all.map(one => one.clientHeight)")
        assert min(sides) >= 44  # of a fingertip


def test_icons_are_as_large_as_the_manifest_says(built):
    icons = json.loads((built / "manifest.json").read_text())["icons"]
    for icon in icons:
        with Image.open(built / icon["src"]) as image:
            assert icon["sizes"] == "{}x{}".format(*image.size)
    assert {icon["purpose"] for icon in icons} == {"any", "maskable"}


def test_what_no_page_can_be_made_of_is_refused(run, copy, tmp_path):
    assert "There is no " in build(tmp_path / "none", fails=True)
    model = keras_resdense.ResNet20(input_shape=(8, 8, 1))
    keras_resdense.export(model, copy / "model.tflite", "tflite", overwrite=True)
    assert "does not say how to prepare images" in build(copy, fails=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    assert "holds other files" in build(run, "--to", tmp_path / "mine", fails=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "mine"
