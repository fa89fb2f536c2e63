"""Which kernels TensorFlow runs on, by what was imported first."""

import os
import subprocess
import sys

import pytest

ASK = "from tensorflow.python.util import _pywrap_util_port; print('oneDNN', _pywrap_util_port.IsMklEnabled())"
VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


@pytest.mark.parametrize(
    "program, chosen, expected",
    [
        pytest.param(f"import keras_resdense; {ASK}", None, "True", id="package first"),
        pytest.param(f"import keras_resdense; {ASK}", "0", "False", id="user has decided"),
        # Only that it works: which kernels there are then depends on the processor.
        pytest.param(f"import tensorflow; import keras_resdense; {ASK}", None, "", id="TensorFlow first"),
    ],
)
def test_onednn_is_asked_for_unless_the_user_decided(program, chosen, expected):
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {VARIABLE: chosen} if chosen else {}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"oneDNN {expected}" in done.stdout
