"""The precision that `--precision auto` chooses, and that a run keeps it."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resdense.training import choosing_precision, train, workers
from keras_resdense.training.choosing_precision import choose_precision
from keras_resdense.training.recipes import Settings, read
from tests.test_survival import killed
from tests.tiny import RECIPE, tiny  # noqa: F401


class Burn(keras.layers.Layer):
    """Takes 30 ms of processor time in one precision, and hardly any in the other."""

    def __init__(self, slow):
        super().__init__()
        self.slow = slow

    def call(self, x):
        end = time.process_time() + 0.03
        while not keras.utils.is_keras_tensor(x) and self.compute_dtype == self.slow and time.process_time() < end:
            pass
        return x

    def compute_output_shape(self, shape):
        return shape


def tiny_network():
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])


@pytest.mark.parametrize("slow, chosen", [("float32", "mixed_bfloat16"), ("bfloat16", "float32")])
def test_a_processor_gets_the_precision_that_measures_faster(monkeypatch, slow, chosen):
    monkeypatch.setattr(choosing_precision, "SECONDS", 0.1)

    def build():
        x = keras.Input((8, 8, 1))
        y = keras.layers.Conv2D(2, 8)(x)
        return keras.Model(x, keras.layers.Flatten()(Burn(slow)(y)))

    policy, why = choose_precision(build, 16)
    assert policy == chosen and why.startswith("16 images take 0.0")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("warm_up, chosen", [(0.5, "mixed_bfloat16"), (2.0, "float32")])
def test_a_warm_up_decides_only_if_it_takes_much_longer_than_making_kernels(monkeypatch, warm_up, chosen):
    taken = iter([0.03, warm_up, 0.03, 0.01])
    monkeypatch.setattr(choosing_precision, "SECONDS", 0.0)
    monkeypatch.setattr(choosing_precision, "_timed", lambda model, images: next(taken))
    assert choose_precision(tiny_network, 16)[0] == chosen
    assert len(list(taken)) == (2 if chosen == "float32" else 0)


@pytest.mark.parametrize(
    "half, chosen", [(0.94, "mixed_bfloat16"), (0.96, "float32"), (1.5, "float32")], ids=["faster", "alike", "slower"]
)
def test_half_precision_must_be_clearly_faster(monkeypatch, half, chosen):
    seconds = {"float32": 1.0, "mixed_bfloat16": half}
    monkeypatch.setattr(choosing_precision, "_seconds", lambda build, batch: (seconds, batch))
    said = f"16 images take 1.00 s in float32, {half:.2f} s in mixed_bfloat16."
    assert choose_precision(None, 16) == (chosen, said)


@pytest.mark.parametrize(
    "capabilities, chosen",
    [
        ([(9, 0)], "mixed_bfloat16"),
        ([(8, 0), (7, 5)], "mixed_float16"),
        ([(6, 1)], "float32"),
        ([None], "float32"),
    ],
    ids=str,
)
def test_gpus_get_what_all_of_them_have_tensor_cores_for(monkeypatch, capabilities, chosen):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: capabilities)

    def details(gpu):
        return {"compute_capability": gpu} if gpu else {}

    monkeypatch.setattr(tf.config.experimental, "get_device_details", details)
    assert choose_precision(None, 16)[0] == chosen


def test_a_run_keeps_the_precision_that_it_chose_at_its_start(tmp_path, monkeypatch, capsys):
    """A measurement also changes nothing else: the weights are those of a run with this precision."""
    auto = {"settings": Settings(precision="auto"), "folder": str(tmp_path), "name": "auto"}
    monkeypatch.setattr(choosing_precision, "SECONDS", 0.0)
    monkeypatch.setattr(train, "choose_precision", lambda *given: ("mixed_bfloat16", choose_precision(*given)[1]))
    killed(monkeypatch, 7, recipe=RECIPE, **auto)
    assert "Precision: mixed_bfloat16. 48 images take 0." in capsys.readouterr().out
    monkeypatch.setattr(train, "choose_precision", None)
    resumed = train.train(RECIPE, **auto)
    assert "Precision: mixed_bfloat16. The run began with it." in capsys.readouterr().out
    assert read(resumed.folder / "recipe.json")[1] == Settings(precision="mixed_bfloat16")
    named = train.train(RECIPE, Settings(precision="mixed_bfloat16"), folder=str(tmp_path), name="named")
    for expected, found in zip(named.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_other_workers_take_the_choice_of_the_chief(monkeypatch):
    monkeypatch.setattr(workers, "is_chief", lambda devices: False)
    monkeypatch.setattr(workers, "gather", lambda devices, text: ["mixed_float16" if text == "" else text])
    assert train._precision(None, None, 1, None, None) == "mixed_float16"


def test_auto_with_xla_is_refused():
    with pytest.raises(ValueError, match="precision is 'auto'; it must be one of .* with xla"):
        Settings(precision="auto", xla=True)
