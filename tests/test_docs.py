"""The documentation is correct: its code runs and prints the shown output, and pictures, pages and links exist."""

import contextlib
import html
import importlib
import io
import os
import posixpath
import re
import subprocess
import sys
import urllib.parse

import pytest

import keras_resdense
from keras_resdense import VARIANTS
from tests.zoo_facts import ROOT

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
#: A block of code and, where one follows, what it prints.
CODE = re.compile(r'```python\n(.*?)```(?:\n\n```text title="prints"\n(.*?)```)?', flags=re.DOTALL)
#: Pages whose code trains or exports for long, as other tests always do.
SLOW = {"train.md", "quantisation.md", "phones.md", "export.md"}
WITH_CODE = [
    pytest.param(page, marks=[pytest.mark.sweep] * (page in SLOW)) for page, text in PAGES.items() if CODE.search(text)
]
#: What people read of the repository.
TEXTS = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "examples/README.md", "saved_models/README.md"]
#: Words from which on a sentence is no phrase that anybody would write.
LONG = 6
#: Characters of a line of code.
CODE_WIDTH = 80


def script(name):
    """Returns a script, whose neighbours are on the path as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        return importlib.import_module(name)


@pytest.fixture
def variants():
    """Undoes the changes of a page to the table."""
    before = dict(VARIANTS)
    yield
    VARIANTS.clear()
    VARIANTS.update(before)


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, variants):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code, printed in CODE.findall(PAGES[page]):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, page, "exec"), names)
        assert not printed or output.getvalue() == printed


def test_every_public_name_is_in_the_reference():
    reference = "".join(text for page, text in PAGES.items() if page.startswith("reference/"))
    known = set(re.findall(r"\w+", reference))
    builders = {name for name in keras_resdense.__all__ if name.lower() in VARIANTS}
    whole = re.findall(r"^::: keras_resdense\.([\w.]+)\n    options: (?!.*members)", reference, flags=re.MULTILINE)
    for module in whole:
        known |= set(vars(importlib.import_module(f"keras_resdense.{module}")))
    assert set(keras_resdense.__all__) - builders <= known


def test_no_sentence_occurs_twice():
    seen = {}
    texts = {name: (ROOT / name).read_text() for name in TEXTS} | {f"docs/{page}": text for page, text in PAGES.items()}
    for name, text in texts.items():
        # What scripts write is on several pages, and says of each table what it was measured on.
        written = r"<!-- (\w+) -->.*?<!-- end of \1 -->"
        prose = re.sub(rf"{written}|```.*?```|^\|.*?$|^:::.*?$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)
        for sentence in re.split(r"(?<=[.:;!?])\s+|\n\n", prose):
            words = tuple(re.findall(r"\w+", sentence.lower()))
            if len(words) >= LONG:
                assert words not in seen, f"{name} and {seen[words]}: {sentence}"
                seen[words] = name


def test_pictures_are_those_that_the_script_draws(tmp_path):
    figures = script("figures")
    figures.draw(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "figures").iterdir()}
    shown = set(re.findall(r"figures/(\w+\.svg)", "".join([*PAGES.values(), (ROOT / "mkdocs.yml").read_text()])))
    assert drawn == shown
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert "currentColor" in text or path.stem == "logo"
        assert figures.INK not in text


def test_the_page_of_the_command_line_is_what_the_script_writes():
    assert script("command_line").page() == PAGES["reference/command_line.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Returns the pages of the built site, by their paths in it, and its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # The theme's makers advertise their next product as a warning.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return folder, {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.html")}


def test_pages_need_nothing_from_elsewhere(site):
    _, pages = site
    assert {"index.html", "faq/index.html", "examples/index.html", "benchmarks/index.html"} <= set(pages)
    for page, text in pages.items():
        # Links may lead away; whatever the page itself needs comes along with it.
        needed = re.findall(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"(https?:[^\"]+)", text)
        assert not needed, (page, needed)


def test_no_link_of_the_site_is_dead(site):
    """This includes links to places on pages, pictures, and the links of the template."""
    folder, pages = site
    places = {page: set(re.findall(r"\bid=\"?([^\"\s>]+)", text)) for page, text in pages.items()}
    dead = set()
    for page, text in pages.items():
        for link in re.findall(r"<(?:a|img|link|script)\b[^>]*?(?:href|src)=\"([^\"]*)\"", text):
            address = urllib.parse.urlsplit(html.unescape(link))
            if address.scheme or address.netloc or page == "404.html":
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), urllib.parse.unquote(address.path)))
            target = page if not address.path else target
            if (folder / target).is_dir():
                target = posixpath.normpath(f"{target}/index.html")
            place = urllib.parse.unquote(address.fragment)
            if not (folder / target).is_file() or (place and place not in places.get(target, {place})):
                dead.add((page, link))
    assert not dead


def test_code_fits_its_column():
    """A column of the site, and of a README on GitHub, has about 85 characters."""
    cards = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("saved_models/*/README.md")]
    texts = {name: (ROOT / name).read_text() for name in [*TEXTS, *cards]}
    for name, text in (texts | {f"docs/{page}": text for page, text in PAGES.items()}).items():
        for code in re.findall(r"^``` ?\w.*?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            long = [line for line in code.splitlines() if len(line) > CODE_WIDTH]
            assert not long, (name, long)
