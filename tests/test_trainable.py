"""Files that learn: on LiteRT alone, as far as the same training in Keras, and without losing what they learned."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

import keras_resdense
from keras_resdense.data.contract import ImageContract
from keras_resdense.exporting.export import export
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.gradients import differentiable
from tests.test_export import QUICK, TINY, some_images, tiny
from tests.test_folding import build, shrunk
from tests.zoo_facts import sweep

ROW = EXPORTERS["tflite_trainable"]
BATCH = ROW.train_batch
COMMITTED = Path(__file__).parent.parent / "saved_models/resnet20_fashion_mnist/model.keras"
#: The process of a device: it learns, or carries on from what an earlier one saved, and answers.
DEVICE = """
import pathlib, sys, numpy
from ai_edge_litert.interpreter import Interpreter
file, data, memory, answers, rate, epochs = sys.argv[1:]
images, labels, others = map(numpy.load(data).get, ("images", "labels", "others"))
interpreter = Interpreter(file, num_threads=1)
run = interpreter.get_signature_runner
if pathlib.Path(memory).exists():
    assert run("restore")(weights=numpy.load(memory))["restored"]
for _ in range(int(epochs)):
    for start in range(0, len(images), 10):
        batch = {"images": images[start : start + 10], "labels": labels[start : start + 10]}
        assert run("train")(**batch, learning_rate=numpy.float32(rate))["loss"] < 10
if int(epochs):
    numpy.save(memory, run("save")()["weights"])
infer = run("infer")
numpy.save(answers, [infer(images=image[None])["outputs"][0] for image in others])
assert not {"tensorflow", "keras", "keras_resdense"} & sys.modules.keys()
"""


def write(model, path, images=None, **options):
    row = dataclasses.replace(ROW, **options)
    return export(model, path, row, some_images(BATCH, model.input_shape[-1]) if images is None else images)


def runners(path):
    interpreter = Interpreter(str(path), num_threads=1)
    return {name: interpreter.get_signature_runner(name) for name in ("infer", "train", "save", "restore")}


def batch(count=BATCH, classes=3, rate=0.1):
    labels = np.arange(count, dtype="int32") % classes
    return {"images": some_images(count).astype("float32"), "labels": labels, "learning_rate": np.float32(rate)}


def digits():
    """Twenty digits of each class in the size of Fashion-MNIST, their labels, and others with theirs."""
    data = load_digits()
    images = np.asarray(tf.image.resize(data.images[..., None] * (255 / 16), (28, 28), "bilinear"))
    few = np.concatenate([np.flatnonzero(data.target == digit)[:20] for digit in range(10)])
    np.random.default_rng(0).shuffle(few)
    others = np.setdiff1d(np.arange(len(images)), few)
    return images[few], data.target[few], images[others], data.target[others]


@pytest.mark.parametrize(
    "learns, frozen, rate, epochs",
    [("head", "stage4", 0.1, 20), pytest.param("last_stage", "stage3", 0.01, 20, marks=pytest.mark.sweep)],
)
def test_a_backbone_learns_new_classes_as_in_keras_and_keeps_them(learns, frozen, rate, epochs, tmp_path):
    images, labels, others, truth = digits()
    backbone = keras_resdense.load_model(COMMITTED, compile=False)
    head = keras.layers.Dense(10, activation="softmax", kernel_initializer="zeros", name="predictions")
    student = keras.Model(backbone.input, head(backbone.layers[-1].input))
    student.image_contract = backbone.image_contract
    write(student, tmp_path / "m.tflite", images, learns=learns)
    np.savez(tmp_path / "data.npz", images=images, labels=labels.astype("int32"), others=others)

    def device(name, epochs):
        paths = [tmp_path / part for part in ("m.tflite", "data.npz", "memory.npy", name)]
        subprocess.run([sys.executable, "-c", DEVICE, *paths, str(rate), str(epochs)], check=True, cwd=tmp_path)
        return np.load(tmp_path / name)

    learned, restarted = device("learned.npy", epochs), device("restarted.npy", 0)
    folded = keras_resdense.fold_batch_norm(student)
    keras_resdense.freeze(folded, frozen)
    folded.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", jit_compile=False)
    folded.fit(images, labels, batch_size=10, epochs=epochs, shuffle=False, verbose=0)
    expected = folded.predict(others, verbose=0)
    accuracy = (expected.argmax(-1) == truth).mean()
    assert accuracy > {"head": 0.3, "last_stage": 0.6}[learns]
    assert abs((learned.argmax(-1) == truth).mean() - accuracy) <= 0.01
    np.testing.assert_array_equal(restarted, learned)
    if learns == "head":
        np.testing.assert_allclose(learned, expected, atol=1e-3)


@pytest.mark.parametrize("name", sweep(QUICK + ("resnext50_32x4d",), {"seresnet18"}))
def test_the_last_stage_of_every_family_learns(name, tmp_path):
    # Exporting itself compares a step of training with TensorFlow's.
    write(build(shrunk(name), classes=3, classifier_activation="softmax"), tmp_path / "m.tflite", learns="last_stage")
    run = runners(tmp_path / "m.tflite")
    losses = [float(run["train"](**batch(rate=0.01))["loss"]) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)


def test_nothing_but_built_in_operations_and_infer_comes_first(tmp_path):
    from ai_edge_litert import schema_py_generated as schema

    write(tiny(), tmp_path / "m.tflite", learns="last_stage")
    file = schema.ModelT.InitFromPackedBuf((tmp_path / "m.tflite").read_bytes(), 0)
    assert schema.BuiltinOperator.CUSTOM not in {code.builtinCode for code in file.operatorCodes}
    assert {entry.signatureKey: entry.subgraphIndex for entry in file.signatureDefs}[b"infer"] == 0


@pytest.mark.parametrize(
    "layer, shape",
    [
        (keras.layers.Conv2D(6, 3, padding="same"), (5, 6, 4)),
        (keras.layers.Conv2D(6, 3, 2, padding="same", use_bias=False), (8, 7, 4)),
        (keras.layers.Conv2D(6, (3, 2), 2, padding="valid", activation="relu"), (8, 9, 4)),
        (keras.layers.Conv2D(6, 1, 2, groups=2), (5, 5, 4)),
        (keras.layers.DepthwiseConv2D(1), (5, 5, 4)),
        (keras.layers.Dense(3, activation="sigmoid"), (7,)),
    ],
)
def test_gradients_are_those_of_keras(layer, shape):
    inputs = tf.random.normal((3, *shape))
    layer(inputs)
    layer.set_weights([np.random.default_rng(0).normal(size=weight.shape) for weight in layer.get_weights()])
    sources = [inputs, *(weight.value for weight in layer.weights)]
    results = []
    for compute in (lambda values, *_: layer(values), lambda values, *weights: differentiable(layer)(weights, values)):
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = compute(*sources)
            loss = tf.reduce_sum(tf.square(outputs))
        results.append([outputs, *tape.gradient(loss, sources)])
    for own, expected in zip(*results[::-1], strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def network():
    return tiny()


@pytest.fixture(scope="module")
def learner(network, tmp_path_factory):
    """Returns the path of a file that learns three classes, its weights those of the network."""
    path = tmp_path_factory.mktemp("learner") / "m.tflite"
    write(network, path)
    return path


def test_what_is_not_sound_is_not_learned(learner):
    run, good = runners(learner), batch()
    before = run["save"]()["weights"]
    for change in (
        {"labels": good["labels"] + 1},
        {"labels": good["labels"] - 1},
        {"images": np.where(good["images"] == good["images"].max(), np.nan, good["images"])},
        {"learning_rate": np.float32(np.inf)},
    ):
        assert np.isnan(run["train"](**good | change)["loss"])
        np.testing.assert_array_equal(run["save"]()["weights"], before)
    for change in (
        {"images": good["images"][:7], "labels": good["labels"][:7]},
        {"labels": good["labels"][:1]},
        {"images": np.zeros((BATCH, 48, 48, 3), "float32")},
    ):
        with pytest.raises(RuntimeError, match="must sum"):
            run["train"](**good | change)
        np.testing.assert_array_equal(run["save"]()["weights"], before)
    # Such as those of a head with another number of classes.
    with pytest.raises(RuntimeError, match="must sum"):
        run["restore"](weights=before[:-9])
    np.testing.assert_array_equal(run["save"]()["weights"], before)
    assert np.isfinite(run["train"](**good)["loss"])
    assert (run["save"]()["weights"] != before).any()


@pytest.mark.sweep
def test_weights_of_others_are_not_restored(network, learner, tmp_path):
    run = runners(learner)
    before = run["save"]()["weights"]
    write(build(TINY, classes=4, classifier_activation="softmax"), tmp_path / "four.tflite")
    with pytest.raises(RuntimeError, match="must sum"):
        run["restore"](weights=runners(tmp_path / "four.tflite")["save"]()["weights"])
    other, same = (keras.models.clone_model(network) for _ in range(2))
    other.set_weights([weight * 1.1 for weight in network.get_weights()])
    same.set_weights(network.get_weights())
    named = keras.Model(network.inputs, network.outputs)
    named.class_names = ["a", "b", "c"]
    damaged = before.copy()
    damaged[-1] = np.nan
    foreign = [damaged]
    for model in (other, named):
        write(model, tmp_path / f"{len(foreign)}.tflite")
        foreign.append(runners(tmp_path / f"{len(foreign)}.tflite")["save"]()["weights"])
    for weights in foreign:
        assert not run["restore"](weights=weights)["restored"]
        np.testing.assert_array_equal(run["save"]()["weights"], before)
    # What another head of the same backbone learned is taken, as after an update of the app.
    head = same.layers[-1]
    head.set_weights([weight + 1 for weight in head.get_weights()])
    write(same, tmp_path / "same.tflite")
    weights = runners(tmp_path / "same.tflite")["save"]()["weights"]
    assert (weights != before).any() and run["restore"](weights=weights)["restored"]
    np.testing.assert_array_equal(run["save"]()["weights"], weights)


def test_it_learns_through_compiled_model_which_kotlin_calls(learner):
    model = CompiledModel.from_file(str(learner))

    def run(signature, **inputs):
        names = model.get_signature_list()[signature]
        sources = {name: model.create_input_buffer_by_name(signature, name) for name in names["inputs"]}
        targets = {name: model.create_output_buffer_by_name(signature, name) for name in names["outputs"]}
        for name, values in inputs.items():
            sources[name].write(np.ascontiguousarray(values))
        model.run_by_name(signature, sources, targets)
        (details,) = model.get_output_tensor_details(signature).values()
        (target,) = targets.values()
        return target.read(int(np.prod(details["shape"])), np.dtype(details["dtype"]))

    before, good = run("save"), batch()
    losses = [run("train", **good).item() for _ in range(3)]
    assert losses[2] < losses[0]
    reference = runners(learner)
    np.testing.assert_allclose([reference["train"](**good)["loss"] for _ in range(3)], losses, rtol=1e-4)
    image = good["images"][:1]
    np.testing.assert_allclose(run("infer", images=image), reference["infer"](images=image)["outputs"][0], atol=1e-5)
    assert run("restore", weights=before).item() and (run("save") == before).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "float16"}, "computes in float32"),
        ({"learns": "everything"}, "'head' or 'last_stage'"),
        ({"train_batch": 0}, "at least 1"),
    ],
)
def test_fields_are_checked(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tiny(), tmp_path / "m.tflite", **options)
    assert not [*tmp_path.iterdir()]


def pooled(images):
    return keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(images))


def swish_stage(images):
    x = keras.layers.Conv2D(4, 3, name="stage2_block1_conv1")(images)
    return keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Activation("swish", name="odd")(x)))


@pytest.mark.parametrize(
    "add, learns, message",
    [
        (pooled, "head", "must end in a dense layer"),
        (lambda images: keras.layers.Dense(3, activation="sigmoid")(pooled(images)), "head", "must end in a dense"),
        (lambda images: keras.layers.Dense(3)(pooled(images)), "last_stage", "its last stage is unknown"),
        (swish_stage, "last_stage", "no gradient of 'odd', a Activation"),
    ],
)
def test_an_untrainable_graph_is_an_error(add, learns, message, tmp_path):
    images = keras.Input((32, 32, 3))
    with pytest.raises(ValueError, match=message):
        write(keras.Model(images, add(images)), tmp_path / "m.tflite", learns=learns)
    assert not [*tmp_path.iterdir()]


def test_a_step_that_differs_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resdense.exporting.trainable.relative_noise", lambda *_: 0.1)
    with pytest.raises(RuntimeError, match="step of training"):
        write(tiny(), tmp_path / "m.tflite")
    assert not [*tmp_path.iterdir()]


def test_a_network_of_normalised_images_takes_pixels(tmp_path):
    model = tiny()
    model.image_contract = ImageContract(size=(32, 32), mean=(120.0,), std=(60.0,))
    images = some_images(BATCH)
    write(model, tmp_path / "m.tflite", (images - 120.0) / 60.0, pixels="uint8")
    read = EXPORTERS["tflite"].read(tmp_path / "m.tflite")
    assert read.image_contract == ImageContract(size=(32, 32))
    np.testing.assert_allclose(read(images), model.predict((images - 120.0) / 60.0, verbose=0), atol=1e-4)
    run = runners(tmp_path / "m.tflite")
    losses = [run["train"](**batch(rate=0.01) | {"images": images})["loss"] for _ in range(3)]
    assert losses[2] < losses[0]
