"""The choice of TensorFlow's kernels."""

import os
import subprocess
import sys

import pytest

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


def printed(program, **chosen):
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | chosen
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_onednn_is_asked_for_unless_the_user_decided():
    ask = f"import os, keras_resdense; print(os.environ['{VARIABLE}'])"
    assert printed(ask) == "1"
    assert printed(ask, **{VARIABLE: "0"}) == "0"


@pytest.mark.sweep
def test_tensorflow_hears_of_it():
    """This also works if a builder is used before TensorFlow is imported."""
    ask = "from tensorflow.python.util import _pywrap_util_port as port; print(port.IsMklEnabled())"
    assert printed(f"from keras_resdense import ResNet18; {ask}") == "True"
