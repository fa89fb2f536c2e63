"""`benchmarks/arm64.py`: exported files on emulated ARM64 processors."""

import itertools
import os
import re
import subprocess
import sys

import pytest

from keras_resdense.names import FORMATS
from tests.tiny import ROOT

ARM64 = [sys.executable, ROOT / "benchmarks" / "arm64.py"]
LINE = re.compile(r"\S+ (\S+) (\S+) +apart (\S+) (of|steps)(?: (\S+))?, \S+ differ, same class (\S+)%")
FAMILIES = "resnet18d resnet50v1 resnext50_32x4d seresnet18 plainnet18 resnet18v2 densenet121 resnet20 densenetbc40_12"
PROCESSORS = ["cortex-a53", "cortex-a76", "cortex-a710"]
#: Largest difference, relative to the largest output, or in steps of the output.
ALLOWED = {
    "tflite": 1e-5,
    "tflite_float16": 1e-5,
    # The last bit of an activation decides how it is rounded to 8 bits.
    "tflite_dynamic": 0.05,
    "tflite_int8": 1,
    "tflite_int16x8": 1e-5,
    "tflite_trainable": 1e-5,
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["committed", *FAMILIES.split()])
def test_a_network_gives_the_same_answers_on_arm64(name):
    # The committed network answers 200 images, which takes long on each processor.
    processors = PROCESSORS[1:2] if name == "committed" else PROCESSORS
    done = subprocess.run([*ARM64, name, "--processors", *processors], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found = LINE.findall(done.stdout)
    formats = [format for format in FORMATS if format.startswith("tflite")]
    compared = {(format, processor) for format, processor, *_ in found}
    assert compared == set(itertools.product(formats, processors))
    for format, _, apart, unit, largest, same in found:
        assert float(apart) <= ALLOWED[format] * (float(largest) if unit == "of" else 1)
        assert float(same) == 100


@pytest.mark.sweep
def test_without_debian_it_says_so(tmp_path):
    done = subprocess.run(
        [*ARM64, "committed"], cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "run this on Debian" in done.stderr
