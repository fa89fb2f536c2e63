"""`benchmarks/arm64.py`: exported files on an emulated ARM64 processor."""

import re
import subprocess
import sys

import pytest

from tests.tiny import ROOT

ARM64 = [sys.executable, ROOT / "benchmarks" / "arm64.py"]


@pytest.mark.sweep
def test_the_committed_network_gives_the_same_answers_on_arm64():
    done = subprocess.run([*ARM64, "committed"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("committed")]
    assert len(lines) == 5
    for line in lines:
        assert float(re.search(r"same class ([\d.]+)%", line)[1]) >= 99
    exact = next(line for line in lines if line.split()[1] == "tflite")
    assert float(re.search(r"apart (\S+)", exact)[1]) < 1e-5


@pytest.mark.sweep
def test_without_qemu_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = subprocess.run([*ARM64, "committed"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "apt install qemu-user-static" in done.stderr
