"""Keras's other backends give the same numbers as TensorFlow, each in its own process; needs jax and torch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.sweep
#: What runs on every backend, printed as JSON: probabilities, loss and features of three networks, and refusals.
WORK = """
import dataclasses, json, pathlib, sys
import keras, numpy as np
import keras_resdense
from keras_resdense import DENSENETS, RESNETS_V2

folder = sys.argv[1]
keras.utils.set_random_seed(0)
random = np.random.default_rng(0)
images, labels = random.normal(size=(8, 32, 32, 3)).astype("float32"), random.integers(0, 10, 8)
rows = {
    "resnet20": keras_resdense.VARIANTS["resnet20"],
    "resnet50v2": dataclasses.replace(RESNETS_V2["resnet50v2"], depths=(1, 1, 1, 1), memory_efficient=True),
    "densenet": dataclasses.replace(DENSENETS["densenetbc40_12"], depths=(2, 2, 2), memory_efficient=True),
}
found = {}
for name, row in rows.items():
    file = pathlib.Path(folder, f"{name}.keras")  # The first process makes it, the others load it.
    weights = file if file.exists() else None
    model = keras_resdense.create_model(row, input_shape=(32, 32, 3), classes=10, weights=weights)
    if weights is None:
        model.save(file)
    folded = keras_resdense.fold_batch_norm(model)
    maps = keras_resdense.feature_extractor(model).predict(images, verbose=0)
    values = {
        "predict": model.predict(images, verbose=0),
        "folded": folded.predict(images, verbose=0),
        "maps": np.array([np.abs(value).mean(dtype="float64") for value in maps.values()]),
        "pixels": np.asarray(keras.ops.convert_to_numpy(keras_resdense.preprocess_input(
            keras.ops.convert_to_tensor(images * 50), "caffe"))).mean((0, 1, 2)),
        "macs": np.array([part.macs for part in keras_resdense.summarise(model)]),
    }
    model.compile(keras_resdense.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    values["loss"] = np.array(model.fit(images, labels, batch_size=8, verbose=0, shuffle=False).history["loss"])
    values["stepped"] = np.concatenate([np.ravel(weight)[:50] for weight in model.get_weights()])
    found[name] = {key: np.asarray(value).tolist() for key, value in values.items()}
refused = {}
for what, call in {
    "export": lambda: keras_resdense.export(model, f"{folder}/no", "tflite"),
    "grad_cam": lambda: keras_resdense.grad_cam(model, images),
    "gradient_norms": lambda: keras_resdense.gradient_norms(model, images, labels),
    "train": lambda: keras_resdense.train(folder=folder),
    "strategy": lambda: keras_resdense.strategy(),
}.items():
    if keras.backend.backend() != "tensorflow":
        try:
            call()
        except ValueError as error:
            refused[what] = str(error)
print(json.dumps([found, refused]))
"""
NAMES = ("resnet20", "resnet50v2", "densenet")
#: One step of the whole ResNet-50 V2: its probabilities before and after, as JSON.
STEP = """
import json, pathlib, sys
import keras, numpy as np
keras.config.set_floatx(sys.argv[2])
import keras_resdense

keras.utils.set_random_seed(0)
random = np.random.default_rng(0)
images, labels = random.normal(size=(8, 64, 64, 3)), random.integers(0, 10, 8)
model = keras_resdense.ResNet50V2(input_shape=(64, 64, 3), classes=10)
file = pathlib.Path(sys.argv[1], "weights.npz")
if not file.exists():
    np.savez(file, *model.get_weights())
with np.load(file) as arrays:
    model.set_weights([arrays[name] for name in arrays.files])
before = model.predict(images, verbose=0)
model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
model.fit(images, labels, batch_size=8, verbose=0, shuffle=False)
print(json.dumps([before.tolist(), model.predict(images, verbose=0).tolist()]))
"""


def work(backend, *arguments, code=WORK):
    environment = os.environ | {"KERAS_BACKEND": backend, "KERAS_TORCH_DEVICE": "cpu"}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    return folder, work("tensorflow", folder)[0]


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_computes_what_tensorflow_does_and_refuses_the_rest(backend, on_tensorflow):
    folder, expected = on_tensorflow
    found, refused = work(backend, folder)
    for name in NAMES:
        for key, values in expected[name].items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(found[name][key], values, rtol=0, atol=1e-4 * scale, err_msg=f"{name} {key}")
    assert list(refused) == ["export", "grad_cam", "gradient_norms", "train", "strategy"]
    for what, message in refused.items():
        assert message.startswith(f"{what} needs TensorFlow, but Keras runs on {backend}. Save the model as .keras")


def test_what_differs_after_a_step_is_rounding(tmp_path):
    """The step amplifies it 10,000 times: between precisions of one backend as much as between backends."""
    single = np.array(work("tensorflow", tmp_path, "float32", code=STEP))
    double = np.array(work("tensorflow", tmp_path, "float64", code=STEP))
    before, after = np.abs(single - double).max((1, 2))
    assert before < 1e-5 and after > 1000 * before
    for backend in ("jax", "torch"):
        other = np.array(work(backend, tmp_path, "float32", code=STEP))
        differences = np.abs(other - double).max((1, 2))
        assert differences[0] < 1e-5 and differences[1] < 2 * after, backend
