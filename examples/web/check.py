"""Compares the page's answers, in headless Chromium, with Python's on the same image files.

    python examples/web/check.py saved_models/resnet20_fashion_mnist

Takes the first 50 test images of the data that the run was trained on. Prints the largest difference of any
probability, the agreement of the first choices and the median latency in the browser, one thread of WebAssembly.
Needs Chromium, `npm ci --prefix examples/web` and `pip install playwright`.
"""

import argparse
import base64
import contextlib
import dataclasses
import functools
import http.server
import shutil
import statistics
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

import keras_resdense
from keras_resdense import runs
from keras_resdense.training import recipes

IMAGES = 50
WEB = Path(__file__).parent.resolve()
OPEN_FILE = "async (url) => (await import('./page.js')).open(await (await fetch(url)).blob())"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the page and Python made of the same images.

    Attributes:
        difference: Largest difference of any probability.
        agreement: Share of the images with the same first choice.
        milliseconds: Median latency of the page.
    """

    difference: float
    agreement: float
    milliseconds: float


def compare(run: Path, files: Sequence[Path]) -> Comparison:
    """Has images classified by the page, and as `keras-resdense predict` does it.

    Args:
        run: Folder with `model.tflite` and `labels.txt`.
        files: Images.
    """
    names = (run / "labels.txt").read_text(encoding="utf-8").splitlines()
    with opened_page(run) as page:
        answers = [open_file(page, file) for file in files]
    differences, agreed = [], 0
    expected = runs.predict(run / "model.tflite", files, top=len(names))
    for answer, (_, ranked) in zip(answers, expected, strict=True):
        probabilities = dict(zip(names, answer["probabilities"], strict=True))
        differences += [abs(probabilities[name] - probability) for name, probability in ranked]
        agreed += max(probabilities, key=probabilities.get) == ranked[0][0]
    return Comparison(
        difference=max(differences),
        agreement=agreed / len(files),
        milliseconds=statistics.median(answer["milliseconds"] for answer in answers),
    )


@contextlib.contextmanager
def opened_page(run: Path) -> Iterator:
    """Serves the page and a run's folder, and gives the page in headless Chromium, a playwright Page."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as site, sync_playwright() as playwright:
        Path(site, "web").symlink_to(WEB)
        Path(site, "run").symlink_to(run.resolve())
        with (
            served(site) as port,
            playwright.chromium.launch(executable_path=shutil.which("chromium")) as browser,
        ):
            page = browser.new_page()
            page.goto(f"http://localhost:{port}/web/?model=../run/model.tflite")
            yield page


def open_file(page, file: Path) -> dict:
    """Gives the page a file as if it was dropped; returns the "probabilities", "milliseconds" and "pixels"."""
    encoded = base64.b64encode(file.read_bytes()).decode()
    return page.evaluate(OPEN_FILE, f"data:;base64,{encoded}")


def write_test_images(run: Path, folder: Path) -> list[Path]:
    """Writes the first test images of a run's data as PNG files."""
    test = keras_resdense.load_data(recipes.read(run / recipes.RECIPE_FILE)[0].data).test
    files = []
    for handle in test.handles(None).take(IMAGES):
        pixels = test.read(handle)[0].numpy()
        files.append(folder / f"{len(files)}.png")
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(files[-1])
    return files


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder: str) -> Iterator[int]:
    """Serves a folder as any static host does, and gives the port on localhost."""
    with http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training run")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        made = compare(run, write_test_images(run, Path(folder)))
    print(f"{IMAGES} images: largest difference {made.difference:.1e}, agreement {made.agreement:.0%},", end=" ")
    print(f"{made.milliseconds:.1f} ms")


if __name__ == "__main__":
    main()
