"""A seeded fuzzer for each format: damaged files are read, or refused with an error."""

import os
import subprocess
import sys

import pytest

from tests.fuzz import KINDS, LEAST, fuzz
from tests.zoo_facts import ROOT

#: Kinds of which a second holds many.
QUICK = ("image", "image_in_graph", "contract", "split", "recipe", "checkpoint", "safetensors")
#: Of the sweep, for all kinds together.
SECONDS = 3600


@pytest.mark.parametrize("kind", QUICK)
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    read, refused = fuzz(kind, 1.0, 0, tmp_path)
    assert read + refused >= LEAST and refused > 0


@pytest.mark.sweep
@pytest.mark.parametrize("kind", KINDS)
def test_an_hour_of_damaged_files(kind, tmp_path):
    """Each fuzzer has its own process, so a crash of a library is noticed."""
    command = [sys.executable, "-m", "tests.fuzz", kind, "--seconds", str(SECONDS / len(KINDS)), "--seed", "1"]
    done = subprocess.run([*command, "--keep", str(tmp_path)], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:], list(tmp_path.iterdir()))
    print(done.stderr.splitlines()[-1])
