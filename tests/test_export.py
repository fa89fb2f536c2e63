"""Exports, read by the runtimes directly and not only by our exporters."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_resdense
from keras_resdense.data.contract import ImageContract
from keras_resdense.exporting import tflite
from keras_resdense.exporting.device_report import device_report
from keras_resdense.exporting.export import export, format_table
from keras_resdense.exporting.exporter import BATCH
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.onnx import ONNX
from keras_resdense.exporting.tflite import TFLite
from tests.fuzz import GOLDEN
from tests.test_folding import REPRESENTATIVES, WHOLE, build, shrunk
from tests.zoo_facts import sweep

TINY = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], depths=(1, 1, 1), filters=(8, 16, 32))
TINY_PARAMETERS = 20_000
CLASSES = 3
CONTRACT = ImageContract(size=(32, 32), resize="shorter_side", crop=0.875, interpolation="bicubic")
#: Formats that compute in float32.
EXACT = ("keras", "saved_model", "tflite", "onnx", "openvino")
#: One of each kind of rewriting; the rest of the families only as whole networks.
QUICK = ("resnet18d", "seresnet18", "resnet50v2", "resnet20", "densenetbc100_12")
PIECES = [
    pytest.param(shrunk(name), id=name, marks=[] if name in QUICK else pytest.mark.sweep) for name in REPRESENTATIVES
]


def tiny(channels=3, **options):
    return build(TINY, channels, classes=CLASSES, classifier_activation="softmax", **options)


def some_images(count=24, channels=3, seed=0):
    """Returns smooth images of many colours, because a network's mean output for plain noise hardly varies."""
    corners = np.random.default_rng(seed).uniform(0, 255, (count, 3, 3, channels))
    return np.asarray(tf.image.resize(corners, (32, 32), "bicubic")).clip(0, 255).round().astype("uint8")


def write(model, path, format, images=None, **options):
    """Exports with calibration images, without the warning for missing classes."""
    images = some_images(channels=model.input_shape[-1]) if images is None else images
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model predicts")
        return export(model, path, format, images, calibration=images, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a function from a format to an export, which is made once, and its images."""
    model, images = tiny(), some_images()
    model.image_contract = CONTRACT
    labels = model.predict(images.astype("float32"), verbose=0).argmax(-1)

    @functools.cache
    def make(format):
        path = tmp_path_factory.mktemp(format) / "made" / EXPORTERS[format].file_name
        return write(model, path, format, images, labels=labels, class_names=["a", "b", "ü"]), images

    return make


@pytest.mark.parametrize("format", EXPORTERS)
def test_every_format_is_measured_and_described(format, exported):
    made, images = exported(format)
    path = made.path
    assert made.accuracy == made.agreement >= 0.9
    assert made.difference < 1e-5 or format not in EXACT
    assert made.size > (TINY_PARAMETERS if format in ("tflite_dynamic", "tflite_int8", "tflite_int16x8") else 1)
    described = json.loads((path.parent / f"{path.name}.json").read_text())
    assert described["difference"] == made.difference and described["latency"] == made.latency
    assert described["input_shape"] == [None, 32, 32, 3]
    assert (described["images"], described["random"]) == (len(images), False)
    for name, digest in described["sha256"].items():
        assert (
            subprocess.run(["sha256sum", path.parent / name], capture_output=True).stdout.split()[0] == digest.encode()
        )
    assert (path.parent / "labels.txt").read_text(encoding="utf-8").split() == ["a", "b", "ü"]
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.json", "labels.txt"}
    assert len(format_table([made]).splitlines()) == 2
    read = EXPORTERS[format].read(path)
    assert read.class_names == ("a", "b", "ü") and read.image_contract == CONTRACT


SERVE = """
import sys, numpy, keras
assert "keras_resdense" not in sys.modules
layer = keras.layers.TFSMLayer(sys.argv[1], call_endpoint="serving_default")
images = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], layer(images)["outputs"])
"""


@pytest.mark.parametrize("format", sweep(["saved_model", "saved_model_frozen"], {"saved_model"}))
def test_saved_model_serves_pixels_and_files_and_is_a_layer_without_this_package(format, tmp_path):
    model, images = tiny(), some_images(4)
    expected = model.predict(images.astype("float32"), verbose=0)
    write(model, tmp_path / "saved_model", format, images)
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures
    outputs = serve["serving_default"](images=tf.constant(images, tf.float32))["outputs"]
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    outputs = serve["serve_images"](encoded=tf.constant(encoded))["outputs"]
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    larger = [tf.io.encode_jpeg(np.kron(image, np.ones((2, 2, 1), "uint8")), quality=100).numpy() for image in images]
    outputs = serve["serve_images"](encoded=tf.constant(larger))["outputs"]
    np.testing.assert_allclose(outputs, expected, atol=0.2)

    np.save(tmp_path / "images.npy", images.astype("float32"))
    arguments = [tmp_path / "saved_model", tmp_path / "images.npy", tmp_path / "outputs.npy"]
    subprocess.run([sys.executable, "-c", SERVE, *arguments], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, atol=1e-5)


@pytest.mark.sweep
def test_a_frozen_saved_model_holds_its_weights_once_and_as_constants(tmp_path):
    model = keras_resdense.create_model("resnet18", input_shape=(32, 32, 3))
    made = write(model, tmp_path / "frozen", "saved_model_frozen", some_images(4))
    assert not tf.saved_model.load(str(tmp_path / "frozen")).variables
    assert 1 < made.size / (4 * keras_resdense.fold_batch_norm(model).count_params()) < 1.05


def test_saved_model_without_a_fixed_size(tmp_path):
    model = keras_resdense.create_model(TINY, include_top=False, pooling="avg", input_shape=(None, None, 1))
    images = some_images(3, channels=1)
    write(model, tmp_path / "saved_model", "saved_model", images)
    expected = model.predict(images.astype("float32"), verbose=0)
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures
    np.testing.assert_allclose(
        serve["serving_default"](images=tf.constant(images, tf.float32))["outputs"], expected, rtol=1e-4, atol=1e-4
    )
    # Nothing tells to which size an image file is to be resized, until a contract does.
    assert "serve_images" not in serve
    model.image_contract = ImageContract(size=(32, 32), channels=1)
    write(model, tmp_path / "saved_model", "saved_model", images, overwrite=True)
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serve_images"]
    outputs = serve(encoded=tf.constant([tf.io.encode_png(image).numpy() for image in images]))["outputs"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_tflite_names_its_input_and_output_and_runs_alone(tmp_path):
    model, images = tiny(), some_images(4)
    write(model, tmp_path / "model.tflite", "tflite", images)
    run = Interpreter(model_path=str(tmp_path / "model.tflite"), num_threads=2).get_signature_runner("serving_default")
    outputs = [run(images=image[None].astype("float32"))["outputs"][0] for image in images]
    np.testing.assert_allclose(outputs, model.predict(images.astype("float32"), verbose=0), atol=1e-5)


@pytest.mark.parametrize("pixels", ["int8", "uint8"])
def test_int8_takes_and_gives_bytes(pixels, tmp_path):
    # Without the darkest and the brightest pixel, which calibration images need not have.
    images = some_images().clip(7, 201)
    write(tiny(), tmp_path / "m.tflite", dataclasses.replace(EXPORTERS["tflite_int8"], pixels=pixels), images)
    interpreter = Interpreter(model_path=str(tmp_path / "m.tflite"))
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["dtype"] is target["dtype"] is np.dtype(pixels).type
    if pixels == "uint8":
        # Pixels are their own quantisation, so that a camera's bytes go in as they are.
        assert source["quantization"] == (pytest.approx(1.0), 0) and target["quantization"] == (1 / 256, 0)
    kinds = {detail["dtype"] for detail in interpreter.get_tensor_details()}
    assert np.float32 not in kinds


@pytest.mark.parametrize(
    "format, change, tolerance",
    [
        ("tflite", {"batch": None}, 1e-4),
        ("tflite", {"pixels": "uint8"}, 1e-4),
        ("tflite_int8", {"batch": None, "pixels": "uint8"}, 0.2),
    ],
)
def test_tflite_of_other_batches_and_pixels(format, change, tolerance, tmp_path):
    exporter = dataclasses.replace(EXPORTERS[format], **change)
    model, images = tiny(), some_images(8)
    write(model, tmp_path / "m.tflite", exporter, images)
    outputs = exporter.read(tmp_path / "m.tflite")(images)
    np.testing.assert_allclose(outputs, model.predict(images.astype("float32"), verbose=0), atol=tolerance)
    (source,) = Interpreter(model_path=str(tmp_path / "m.tflite")).get_input_details()
    assert source["shape_signature"][0] == (-1 if "batch" in change else 1)
    assert source["dtype"] is (np.uint8 if "pixels" in change else np.float32)


def test_tflite_of_one_image_is_read_for_many(tmp_path, monkeypatch):
    exporter, images = EXPORTERS["tflite"], some_images(8)
    write(tiny(), tmp_path / "m.tflite", exporter, images)
    many = exporter.read(tmp_path / "m.tflite")
    # A file that answers two images otherwise than one is asked for one at a time.
    monkeypatch.setattr(tflite.np, "allclose", lambda *_, **__: False)
    one = exporter.read(tmp_path / "m.tflite")
    assert (many.most, one.most) == (BATCH, 1)
    np.testing.assert_allclose(many(images), one(images), atol=1e-5)


@pytest.mark.parametrize("opset", [13, ONNX.opset, 21])
def test_onnx_runs_alone_with_one_batch_axis_and_tells_the_names(opset, tmp_path):
    import onnx
    import onnxruntime

    model, images = tiny(), some_images(4).astype("float32")
    exporter = dataclasses.replace(EXPORTERS["onnx"], opset=opset)
    write(model, tmp_path / "model.onnx", exporter, class_names=["a", "b", "ü"])
    assert {entry.domain: entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import}[""] == opset
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.shape, target.name, target.shape) == (
        "images",
        ["batch", 32, 32, 3],
        "outputs",
        ["batch", 3],
    )
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["a", "b", "ü"]
    np.testing.assert_allclose(
        session.run(["outputs"], {"images": images})[0], model.predict(images, verbose=0), atol=1e-5
    )


@pytest.mark.parametrize("variant", PIECES + WHOLE)
def test_a_phone_runs_every_network_in_one_piece(variant, tmp_path):
    model = build(variant)
    write(model, tmp_path / "m.tflite", "tflite", some_images(2))
    report = device_report(tmp_path / "m.tflite")
    assert (report.partitions, report.outside, report.outside_gpu) == (1, {}, {})
    gates = any(isinstance(layer, keras.layers.Multiply) for layer in model.layers)
    allowed = {"CONV_2D", "DEPTHWISE_CONV_2D", "PAD", "ADD", "CONCATENATION", "MAX_POOL_2D", "MEAN"}
    # A mean over a single pixel is a new shape and nothing more.
    allowed |= {"FULLY_CONNECTED", "RESHAPE"} | ({"MUL", "LOGISTIC"} if gates else set())
    assert set(report.operators) <= allowed


@pytest.mark.parametrize("name", ["resnet50v2", "densenetbc100_12"])
def test_bytes_run_in_one_piece_and_are_never_requantised(name, tmp_path):
    exporter = dataclasses.replace(EXPORTERS["tflite_int8"], tolerance=1, pixels="int8")
    write(build(shrunk(name)), tmp_path / "m.tflite", exporter)
    report = device_report(tmp_path / "m.tflite")
    assert (report.partitions, report.outside, report.outside_gpu) == (1, {}, {})
    assert "QUANTIZE" not in report.operators


@pytest.mark.parametrize("variant", WHOLE)
def test_every_variant_in_int8_runs_in_one_piece(variant, tmp_path):
    exporter = dataclasses.replace(EXPORTERS["tflite_int8"], tolerance=np.inf, pixels="int8")
    write(build(variant), tmp_path / "m.tflite", exporter, some_images(2))
    report = device_report(tmp_path / "m.tflite")
    assert (report.partitions, report.outside, report.outside_gpu) == (1, {}, {})


@pytest.mark.parametrize(
    "format, channels", [("tflite", 4), ("tflite_int8", 1), ("tflite_int8", 4), ("saved_model", 4), ("onnx", 1)]
)
def test_other_channels_without_top_and_frozen(format, channels, tmp_path):
    model = build(TINY, channels, include_top=False, pooling="avg")
    model.trainable = False
    write(model, tmp_path / "m", format)


@pytest.mark.sweep
def test_from_mixed_precision_training_under_a_mirrored_strategy(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], tf.distribute.ReductionToOneDevice()).scope():
            model = tiny()
            model.compile("sgd", "sparse_categorical_crossentropy")
        images = some_images(8).astype("float32")
        model.fit(images, np.arange(8) % CLASSES, batch_size=4, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    for format in ("keras", "saved_model", "tflite_int8"):
        write(model, tmp_path / EXPORTERS[format].file_name, format)


def test_a_model_of_others(tmp_path):
    L = keras.layers
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), L.SeparableConv2D(4, 3), L.LayerNormalization(), L.Flatten(), L.Dense(2)]
    )
    for format in ("tflite", "onnx"):
        assert write(model, tmp_path / format, format).difference < 1e-3


def test_wrong_numbers_are_an_error_and_nothing_stays_behind(tmp_path):
    exporter = dataclasses.replace(EXPORTERS["tflite_float16"], tolerance=0.0)
    before = b"\x1c\0\0\0TFL3"
    (tmp_path / "m.tflite").write_bytes(before)
    with pytest.raises(RuntimeError, match="tflite_float16 differs from the model: largest_difference is"):
        write(tiny(), tmp_path / "m.tflite", exporter, overwrite=True)
    assert (tmp_path / "m.tflite").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.tflite"]


def copied(made, tmp_path):
    """Copies an export and all files beside it, and returns its path."""
    shutil.copytree(made.path.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / made.path.name


@pytest.mark.parametrize("format", EXACT)
def test_a_file_that_was_changed_since_it_was_written_is_refused(format, exported, tmp_path):
    path = copied(exported(format)[0], tmp_path)
    largest = max((file for file in (path, *path.rglob("*")) if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(ValueError, match=f"is damaged, or was replaced: its SHA-256 is not that in {path.name}.json"):
        EXPORTERS[format].read(path)
    # Whoever means the file removes what describes another.
    if format == "keras":
        keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()]).save(path)
        (tmp_path / f"{path.name}.json").unlink()
        assert EXPORTERS[format].read(path)(some_images(1).astype("float32")).shape == (1, 3072)


@pytest.mark.parametrize("format", EXACT)
def test_overwriting_spares_what_is_of_another_kind(format, exported, tmp_path):
    path = copied(exported(format)[0], tmp_path)
    folder, notes = tmp_path / f"mine{path.suffix}", tmp_path / f"notes{path.suffix}"
    folder.mkdir()
    kept = [folder / "thesis.tex", notes]
    others = [folder, notes]
    if path.is_dir():
        # Nor is an artefact replaced that somebody has put something into.
        kept, others = [*kept, path / "thesis.tex"], [*others, path]
    for file in kept:
        file.write_text("years of work")
    for target in others:
        with pytest.raises(ValueError, match="so it is not overwritten: choose another path, or remove it"):
            write(tiny(), target, format, overwrite=True)
    assert all(file.read_text() == "years of work" for file in kept)
    if path.is_dir():
        (path / "thesis.tex").unlink()
    before = json.loads((tmp_path / f"{path.name}.json").read_text())["sha256"]
    assert write(build(TINY, classes=2), path, format, overwrite=True).sha256 != before
    assert EXPORTERS[format].read(path)(some_images(1).astype("float32")).shape == (1, 2)


@pytest.mark.parametrize("format", ["saved_model", "tflite"])
def test_without_images_it_compares_on_random_ones_and_says_so(format, tmp_path):
    path = tmp_path / EXPORTERS[format].file_name
    made = export(tiny(), path, format)
    assert made.random and made.images == 16 and made.accuracy is None
    assert json.loads((tmp_path / f"{path.name}.json").read_text())["random"] is True
    assert format_table([made]).endswith(
        "Compared on random images, as none were given; real images are a stronger test."
    )


@pytest.mark.parametrize("labels, batched", [("none", True), ("numbers", True), ("one-hot", False)])
def test_images_may_be_a_data_set(batched, labels, tmp_path):
    model, images = tiny(), some_images(10)
    classes = model.predict(images.astype("float32"), verbose=0).argmax(-1)
    parts = {"none": images, "numbers": (images, classes), "one-hot": (images, np.eye(3)[classes])}[labels]
    data = tf.data.Dataset.from_tensor_slices(parts)
    data = data.batch(4) if batched else data
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model predicts")
        made = export(model, tmp_path / "m", "tflite_int8", data, calibration=data)
    assert made.images == 10 and not made.random
    assert made.accuracy == (None if labels == "none" else made.agreement)


FULL = """
import pathlib, resource, signal, sys, keras_resdense
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = keras_resdense.create_model("resnet20", input_shape=(32, 32, 3), weights=None)
# Less than any format needs: what a full disk does to a file.
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for format in sys.argv[2:]:
    path = pathlib.Path(sys.argv[1]) / keras_resdense.EXPORTERS[format].file_name
    try:
        keras_resdense.export(model, path, format)
        sys.exit(f"{format}: no error")
    except OSError as error:
        assert f"{path} cannot be written (" in str(error), (format, error)
"""


@pytest.mark.sweep
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", FULL, tmp_path, *EXACT], check=True)
    assert not list(tmp_path.iterdir())


def test_overwriting_is_asked_for(tmp_path):
    model, path = tiny(), tmp_path / "saved_model"
    write(model, path, "saved_model")
    before = (path / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(ValueError, match="exists: choose another path, or overwrite it"):
        write(model, path, "saved_model")
    assert (path / "saved_model.pb").stat().st_mtime_ns == before
    write(model, path, "saved_model", overwrite=True)
    assert (path / "saved_model.pb").stat().st_mtime_ns > before


BAD = {
    "There is no format 'tflight'. Closest: tflite. There": {"format": "tflight"},
    "int8 needs calibration images": {"format": "tflite_int8"},
    r"images has shape \(2, 32, 32, 1\); the model takes": {"images": np.zeros((2, 32, 32, 1))},
    r"images has shape \(0, 32, 32, 3\)": {"images": np.zeros((0, 32, 32, 3))},
    r"images has shape \(32, 32, 3\)": {"images": np.zeros((32, 32, 3))},
    r"labels has shape \(3,\); there are 2 images": {"labels": np.zeros(3)},
    "class_names has 2 names; the model has 3 classes": {"class_names": ["a", "b"]},
    r"class_names has 'b\\nc'; every name must be one line": {"class_names": ["a", "b\nc", "d"]},
    "opset is 3; it must be from 13 to": {"format": ONNX(file_name="m", opset=3)},
    "Files whose input is uint8 take pixels 0–255, and these images are not": {
        "format": TFLite(file_name="m", pixels="uint8"),
        "images": some_images(2) / 255,
    },
    "kind is 'int4'; it must be one of float32, float16": {"format": TFLite(file_name="m", kind="int4")},
    "pixels is 'rgb'; of the kind float32 it must be 'float32' or 'uint8'": {
        "format": TFLite(file_name="m", pixels="rgb")
    },
}


@pytest.mark.parametrize("message, change", BAD.items(), ids=[str(i) for i in range(len(BAD))])
def test_bad_input(message, change, tmp_path):
    options = {"format": "tflite", "images": some_images(2), **change}
    with pytest.raises(ValueError, match=message):
        export(tiny(), tmp_path / "m", **options)
    assert not list(tmp_path.iterdir())


def test_bad_models(tmp_path):
    class Own(keras.Model):
        pass

    images = keras.Input((32, 32, 3))
    for model, message in [
        (
            keras_resdense.create_model(TINY, include_top=False, input_shape=(None, None, 3)),
            "TFLite needs images of one",
        ),
        (keras.Sequential([keras.layers.Dense(1)]), "only functional and built sequential models can"),
        (Own(name="own"), "'own' is a Own; only functional"),
        (keras.Model(images, [images, images]), "an exporter takes one input"),
    ]:
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "m", "tflite_int8", some_images(2), calibration=some_images(2))
    assert not list(tmp_path.iterdir())


def test_a_contract_of_another_model_is_refused(tmp_path):
    model = tiny()
    model.image_contract = ImageContract(size=(224, 224))
    with pytest.raises(ValueError, match=r"takes \(None, 32, 32, 3\), but its image_contract says \(224, 224, 3\)"):
        export(model, tmp_path / "m.tflite", "tflite")


def test_an_unwritable_target_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written \(.* choose a path that you may write to"):
        export(tiny(), tmp_path / "file" / "m.tflite", "tflite", some_images(2))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ValueError, match="ONNX needs tf2onnx: pip install onnx onnxruntime tf2onnx"):
        export(tiny(), tmp_path / "m.onnx", "onnx", some_images(2))


@pytest.mark.parametrize("format", EXPORTERS)
def test_damaged_files_are_refused(format, tmp_path):
    path = tmp_path / EXPORTERS[format].file_name
    path.write_bytes(b"no model at all")
    with pytest.raises(ValueError, match="or it is damaged"):
        EXPORTERS[format].read(path)


def test_tflite_that_asks_for_all_memory_is_refused(tmp_path):
    """LiteRT itself would reserve the declared size, which is 8 GiB here."""
    content = (GOLDEN / "runs" / "complete" / "model.tflite").read_bytes()
    shape = np.array([1, 4, 4, 8], "<i4").tobytes()
    assert shape in content
    huge = np.array([2**24, 4, 4, 8], "<i4").tobytes()
    (tmp_path / "model.tflite").write_bytes(content.replace(shape, huge))
    for read in (EXPORTERS["tflite"].read, keras_resdense.device_report):
        with pytest.raises(ValueError, match=r"shape \(16777216, 4, 4, 8\) takes 8,589,934,592 bytes; the largest"):
            read(tmp_path / "model.tflite")


def test_tflite_that_pads_to_all_memory_is_refused(tmp_path):
    content = (GOLDEN / "runs" / "complete" / "model.tflite").read_bytes()
    whole, huge = (np.array([0, 0, 1, 1, rows, 1, 0, 0], "<i4").tobytes() for rows in (1, 2**27))
    assert content.count(whole) == 1
    (tmp_path / "model.tflite").write_bytes(content.replace(whole, huge))
    with pytest.raises(ValueError, match=r"shape \(1, 10, 134217737, 4\) takes 21,474,837,920"):
        EXPORTERS["tflite"].read(tmp_path / "model.tflite")


def test_tflite_opens_where_no_other_process_can_be_started(tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes((GOLDEN / "runs" / "complete" / "model.tflite").read_bytes())
    monkeypatch.setattr("sys.executable", "false")
    EXPORTERS["tflite"].read(tmp_path / "model.tflite")
    monkeypatch.setattr("sys.executable", "no-such-program")
    monkeypatch.setattr("sys.frozen", True, raising=False)
    EXPORTERS["tflite"].read(tmp_path / "model.tflite")


@pytest.mark.parametrize(
    "whole, damaged, message",
    [
        pytest.param([3, 21, 11, 6], [3, 21, -1, 6], "Tensor at index 1 was optional but", id="no kernel"),
        pytest.param([20, 22], [20, -1], "Tensor at index 1 was optional but", id="no second summand"),
        pytest.param([3, 0, 17, 18], [2, 0, 17, 18], "LiteRT ends the process", id="no third input"),
    ],
)
def test_tflite_that_would_end_the_process_is_refused(whole, damaged, message, tmp_path):
    content = (GOLDEN / "runs" / "complete" / "model.tflite").read_bytes()
    whole, damaged = (np.array(numbers, "<i4").tobytes() for numbers in (whole, damaged))
    assert content.count(whole) == 1
    (tmp_path / "model.tflite").write_bytes(content.replace(whole, damaged))
    with pytest.raises(ValueError, match=f"or it is damaged: {message}"):
        EXPORTERS["tflite"].read(tmp_path / "model.tflite")


def test_what_takes_other_inputs_is_refused(tmp_path):
    numbers = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    numbers.export(tmp_path / "saved_model", verbose=False)
    with pytest.raises(ValueError, match="is not a SavedModel with the signature"):
        EXPORTERS["saved_model"].read(tmp_path / "saved_model")
    images = keras.Input((8, 8, 3), batch_size=1)
    keras.Model([images, keras.Input((8, 8, 3), batch_size=1)], images).export(tmp_path / "two", verbose=False)
    converted = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "two")).convert()
    (tmp_path / "m.tflite").write_bytes(converted)
    with pytest.raises(ValueError, match="is not a TFLite model from images to one output"):
        EXPORTERS["tflite"].read(tmp_path / "m.tflite")


def test_poor_calibration_images_are_warned_of(tmp_path):
    images = some_images(3)
    images[0] = 7
    with (
        pytest.warns(UserWarning, match="1 of 3 calibration images are of one colour"),
        pytest.warns(UserWarning, match="of its 50 classes for none of the 3 calibration images"),
    ):
        export(build(TINY, classes=50), tmp_path / "m", "tflite_int8", images, calibration=images)
