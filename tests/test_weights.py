"""Files of weights: each layout is read by name, damaged or foreign files are refused, and nothing is half-loaded."""

import dataclasses
import hashlib
import pickle
import struct
import sys
import types
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import applications
from safetensors.numpy import save_file

import keras_resdense
from keras_resdense.pretrained import catalogue, layouts, readers, weights
from tests.golden import rule
from tests.test_parity import LOGITS, TORCH, assert_same_logits, randomised
from tests.zoo_facts import KERAS, sweep


def tensors_of(variant):
    return {name: rule.array(name, tuple(shape)) for name, shape in TORCH[variant]["tensors"]}


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """A `.safetensors` file as timm's hub serves it."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    counts = {"bn1.num_batches_tracked": np.array(7)}
    save_file(tensors_of("resnet18") | counts, path)
    return str(path)


def test_safetensors_of_timm_give_timms_logits(resnet18):
    model = keras_resdense.ResNet18(weights=resnet18, classifier_activation=None)
    assert_same_logits(model.predict_on_batch(rule.image(224))[0], LOGITS["resnet18/224"])


def test_a_prefix_does_not_matter(resnet18):
    plain = keras_resdense.ResNet18(weights=resnet18)
    prefixed = keras_resdense.ResNet18(weights=resnet18, layer_prefix="left_")
    for left, right in zip(plain.get_weights(), prefixed.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_bodies_load_without_the_head(resnet18):
    body = keras_resdense.ResNet18(weights=resnet18, include_top=False)
    full = keras_resdense.ResNet18(weights=resnet18)
    for left, right in zip(body.get_weights(), full.get_weights(), strict=False):
        np.testing.assert_array_equal(left, right)


def test_another_number_of_classes_keeps_the_new_head_and_says_so(resnet18):
    with pytest.warns(UserWarning, match="another number of classes"):
        model = keras_resdense.ResNet18(weights=resnet18, classes=7)
    kernel = layouts.own_variables(model)["stage5_block2_conv2/kernel"]
    expected = rule.array("layer4.1.conv2.weight", (512, 512, 3, 3)).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    assert model.output_shape == (None, 7)


def test_one_channel_gives_what_its_rgb_replica_gave(resnet18):
    grey = rule.image(64)[..., :1]
    with_rgb = keras_resdense.ResNet18(weights=resnet18, input_shape=(64, 64, 3))
    with_grey = keras_resdense.ResNet18(weights=resnet18, input_shape=(64, 64, 1))
    np.testing.assert_allclose(with_grey(grey), with_rgb(np.repeat(grey, 3, axis=-1)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 4, 6, 7])
def test_more_channels_follow_timms_rule(channels):
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 5))
    adapted = weights.adapt_channels(kernel, channels)
    for index in range(channels):
        np.testing.assert_allclose(adapted[:, :, index], kernel[:, :, index % 3] * 3 / channels)


def test_own_files_load(tmp_path):
    model = keras_resdense.ResNet20(input_shape=(16, 16, 3))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for name in ("model.keras", "model.weights.h5"):
        loaded = keras_resdense.ResNet20(input_shape=(16, 16, 3), weights=str(tmp_path / name))
        for left, right in zip(model.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_own_files_load_into_other_heads_channels_and_models(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet20"], depths=(1, 1, 1))
    normalised = keras.layers.Normalization(mean=1.0, variance=2.0)(keras.Input((16, 16, 3)))
    saved = keras_resdense.create_model(row, input_tensor=normalised, classes=100, layer_prefix="a_")
    saved.compile("adam")
    saved.optimizer.build(saved.trainable_variables)
    saved.save(path) if suffix == ".keras" else saved.save_weights(path)
    with pytest.warns(UserWarning, match="another number of classes"):
        loaded = keras_resdense.create_model(row, weights=path, input_shape=(16, 16, 1))
    theirs, ours = saved.get_layer("a_stem_conv1").kernel, loaded.get_layer("stem_conv1").kernel
    np.testing.assert_array_equal(ours, np.asarray(theirs).sum(axis=2, keepdims=True))
    body = keras_resdense.create_model(row, False, weights=path, input_shape=(16, 16, 3))
    for layer in body.layers[1:]:
        for left, right in zip(layer.get_weights(), saved.get_layer(f"a_{layer.name}").get_weights(), strict=True):
            np.testing.assert_array_equal(left, right)


def test_nested_stages_and_half_precision_load(tmp_path):
    row = dataclasses.replace(keras_resdense.VARIANTS["resnet1202"], depths=(2, 1, 1))
    keras.config.set_dtype_policy("bfloat16")
    try:
        saved = keras_resdense.create_model(row, input_shape=(16, 16, 3))
    finally:
        keras.config.set_dtype_policy("float32")
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded = keras_resdense.create_model(row, weights=tmp_path / "model.weights.h5", input_shape=(16, 16, 3))
    assert any(isinstance(layer, keras.Model) for layer in loaded.layers)
    for left, right in zip(saved.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(np.asarray(left, "float32"), right)


PEERS = {"resnet50v1": applications.ResNet50, "resnet50v2_keras": applications.ResNet50V2}


@pytest.mark.parametrize("variant", sweep(PEERS, {"resnet50v2_keras"}))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_h5_of_keras_applications_gives_its_probabilities(variant, tmp_path):
    network = randomised(PEERS[variant](weights=None))
    network.save(tmp_path / "model.h5")
    model = keras_resdense.create_model(variant, weights=str(tmp_path / "model.h5"))
    assert_same_logits(model.predict_on_batch(rule.image(224)), network.predict_on_batch(rule.image(224)))


PUBLISHED = {(found.variant, found.publisher) for found in catalogue.published_weights()}


@pytest.mark.parametrize("variant", sweep(sorted({variant for variant, publisher in PUBLISHED if publisher == "timm"})))
def test_every_tensor_of_a_published_set_of_timm_has_its_variable(variant):
    names = layouts.peer_names(keras_resdense.create_model(variant), "torch").values()
    assert sorted(names) == sorted(name for name, _ in TORCH[variant]["tensors"])


@pytest.mark.parametrize("variant", sweep(KERAS))
def test_every_tensor_of_a_published_set_of_keras_has_its_variable_or_is_a_folded_bias(variant):
    assert (variant, "keras.applications") in PUBLISHED
    peer = getattr(applications, KERAS[variant])(weights=None)
    theirs = {f"{layer.name}/{weight.name}" for layer in peer.layers for weight in layer.weights}
    names = list(layouts.peer_names(keras_resdense.create_model(variant), "keras").values())
    assert len(set(names)) == len(names) and set(names) <= theirs
    folded = {name.replace("_bn/moving_mean", "_conv/bias") for name in names if name.endswith("_bn/moving_mean")}
    assert theirs - set(names) <= folded


DAMAGE = {
    "missing": r"layer2.0.bn1.running_var is missing, for stage3_block1_bn1/moving_variance \(128,\)",
    "left over": r"layer9.weight \(3, 4\) is left over",
    "shape": r"conv1.weight is \(5, 5, 3, 64\), stem_conv1/kernel needs \(7, 7, 3, 64\)",
    "architecture": "and [0-9]+ more",
    "truncated": "cannot be read",
}


def damage(kind, path):
    """Writes a file that does not fit ResNet-18."""
    tensors = tensors_of("densenet121" if kind == "architecture" else "resnet18")
    if kind == "missing":
        del tensors["layer2.0.bn1.running_var"]
    elif kind == "left over":
        tensors["layer9.weight"] = np.zeros((3, 4), "float32")
    elif kind == "shape":
        tensors["conv1.weight"] = np.zeros((64, 3, 5, 5), "float32")
    save_file(tensors, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_does_not_fit_is_refused_and_leaves_the_model_as_it_was(kind, tmp_path):
    damage(kind, tmp_path / "model.safetensors")
    model = keras_resdense.ResNet18(input_shape=(32, 32, 3))
    before = model.get_weights()
    with pytest.raises(ValueError, match=DAMAGE[kind]):
        weights.load(model, tmp_path / "model.safetensors")
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5"])
def test_rubbish_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(ValueError, match="cannot be read"):
        keras_resdense.ResNet20(weights=str(tmp_path / name))


def test_own_weights_of_another_variant_are_refused(tmp_path):
    keras_resdense.ResNet32().save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match=r"do not fit resnet20:\n  stage2_block4_bn1/beta \(16,\) is left over"):
        keras_resdense.ResNet20(weights=str(tmp_path / "other.weights.h5"))


@pytest.mark.parametrize(
    "name, message", [("model.txt", "of an unknown kind"), ("model.pth", "it needs torch: pip install torch")]
)
def test_other_kinds_are_refused(name, message, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=message):
        keras_resdense.ResNet20(weights=str(tmp_path / name))


def test_pickles_are_read_by_torchs_weights_only_loader(tmp_path, monkeypatch):
    """A fake torch checks that nothing else unpickles, and that the loader gets `weights_only`."""

    class Tensor(np.ndarray):
        def is_floating_point(self):
            return self.dtype.kind == "f"

        def float(self):
            return self

        def numpy(self):
            return np.asarray(self)

    def load(path, map_location, weights_only):
        assert weights_only is True and map_location == "cpu"
        if path.name == "evil.pth":
            raise pickle.UnpicklingError("Weights only load failed")
        return {
            "state_dict": {f"module.{name}": tensor.view(Tensor) for name, tensor in tensors_of("resnet18").items()}
        }

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load, __spec__=ModuleSpec("torch", None)))
    (tmp_path / "good.pth").touch()
    (tmp_path / "evil.pth").touch()
    model = keras_resdense.ResNet18(weights=str(tmp_path / "good.pth"), input_shape=(32, 32, 3))
    np.testing.assert_array_equal(model.get_layer("predictions").bias, rule.array("fc.bias", (1000,)))
    with pytest.raises(ValueError, match="evil.pth cannot be read: Weights only load failed"):
        weights.load(model, tmp_path / "evil.pth")


def spoil(tensors, kind):
    """Puts impossible numbers into ResNet-18's tensors."""
    if kind == "bool":
        tensors["conv1.weight"] = tensors["conv1.weight"] > 0
    elif kind == "int8":
        tensors["fc.weight"] = tensors["fc.weight"].astype("int8")
    elif kind == "negative":
        tensors["bn1.running_var"][3] = -1e-3
    else:
        tensors["layer1.0.bn1.weight"] = tensors["layer1.0.bn1.weight"].astype("float64")
        tensors["layer1.0.bn1.weight"][0] = float(kind)


SPOILT = {
    "bool": "conv1.weight holds bool, not floats",
    "int8": "fc.weight holds int8, not floats",
    "nan": "layer1.0.bn1.weight holds nan: not finite",
    "-inf": "layer1.0.bn1.weight holds -inf: not finite",
    "1e300": r"layer1.0.bn1.weight holds 1e\+300: not finite in float32",
    "negative": "bn1.running_var holds the variance -0.001",
}


@pytest.mark.parametrize("kind", SPOILT)
def test_numbers_that_no_network_has_are_refused(kind, tmp_path):
    tensors = tensors_of("resnet18")
    spoil(tensors, kind)
    save_file(tensors, tmp_path / "model.safetensors")
    model = keras_resdense.ResNet18(input_shape=(32, 32, 3))
    before = model.get_weights()
    with pytest.raises(ValueError, match=SPOILT[kind]):
        weights.load(model, tmp_path / "model.safetensors")
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def datasets(file):
    """Lists all data sets in an HDF5 file."""
    found = []
    file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("kind, message", [("int8", "holds int8, not floats"), ("nan", "holds nan"), ("link", "link")])
def test_own_files_are_checked_alike(suffix, kind, message, tmp_path):
    path = tmp_path / f"model{suffix}"
    model = keras_resdense.ResNet20(input_shape=(16, 16, 3))
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    inner = path
    if suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "opened")
        inner = tmp_path / "opened/model.weights.h5"
    with h5py.File(inner, "r+") as file:
        kernel = next(item for item in datasets(file) if item.ndim == 4)
        name, values = kernel.name, kernel[()]
        del file[name]
        if kind == "link":
            file[name] = h5py.ExternalLink("elsewhere.h5", "/kernel")
        else:
            values.flat[0] = float("nan") if kind == "nan" else 0
            file[name] = values.astype("int8") if kind == "int8" else values
    if suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            for part in (tmp_path / "opened").iterdir():
                archive.write(part, part.name)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        weights.load(model, path)
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage"])
def test_h5_files_that_take_contents_from_elsewhere_are_refused(kind, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * 7 * 7 * 3 * 64))
    with h5py.File(tmp_path / "model.h5", "w") as file:
        layer = file.create_group("conv1_conv")
        layer.attrs["weight_names"] = ["kernel:0"]
        if kind == "external link":
            layer["kernel:0"] = h5py.ExternalLink(str(tmp_path / "secret"), "/kernel")
        elif kind == "soft link":
            layer["kernel:0"] = h5py.SoftLink("/elsewhere")
        else:
            external = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
            layer.create_dataset("kernel:0", (7, 7, 3, 64), "float32", external=external)
    with pytest.raises(ValueError, match="/conv1_conv/kernel:0 is a link or is stored in another file"):
        keras_resdense.ResNet50V1(weights=str(tmp_path / "model.h5"), input_shape=(32, 32, 3))


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("kind", ["no space left", "a size that overflows"])
def test_h5_files_that_hdf5_would_read_forever_are_refused(suffix, kind, tmp_path):
    model, path = keras_resdense.ResNet20(input_shape=(16, 16, 3)), tmp_path / "model.weights.h5"
    model.save_weights(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL") + 16
    if kind == "no space left":
        while content[place]:
            place += 16 + -(-content[place + 8] // 8) * 8
    struct.pack_into("<Q", content, place + 8, 0 if kind == "no space left" else 2**64 - 16)
    path.write_bytes(content)
    if suffix == ".keras":
        with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
            archive.write(path, path.name)
    with pytest.raises(ValueError, match="cannot be read: a heap of strings has an object without a size"):
        weights.load(model, tmp_path / f"model{suffix}")


def test_a_hash_pins_the_contents(resnet18):
    model = keras_resdense.ResNet18(input_shape=(32, 32, 3))
    found = hashlib.sha256(Path(resnet18).read_bytes()).hexdigest()
    weights.load(model, f"{resnet18}#sha256={found}")
    with pytest.raises(ValueError, match=f"has the SHA-256 {found}, not 0000"):
        weights.load(model, f"{resnet18}#sha256={'0' * 64}")
    with pytest.raises(ValueError, match="'12' is not a SHA-256"):
        weights.load(model, f"{resnet18}#sha256=12")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        weights.load(model, f"{resnet18}x")


@pytest.mark.sweep
def test_files_of_keras_applications_as_keras_3_saves_them_load(tmp_path):
    network = randomised(applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10))
    network.save(tmp_path / "model.keras")
    network.save_weights(tmp_path / "model.weights.h5")
    path = tmp_path / "model.keras"
    model = keras_resdense.ResNet50V1(weights=path, input_shape=(32, 32, 3), classes=10)
    assert_same_logits(model.predict_on_batch(rule.image(32)), network.predict_on_batch(rule.image(32)))
    expected = model.get_weights()
    model.set_weights([np.zeros_like(value) for value in expected])
    weights.load(model, tmp_path / "model.weights.h5")
    for left, right in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match="do not fit densenet121"):
        keras_resdense.DenseNet121(weights=path)


def test_old_names_of_torchvisions_densenets_are_known():
    old = {"features.denseblock1.denselayer2.norm.1.weight": 1, "features.denseblock1.denselayer2.conv.2.weight": 2}
    assert list(readers._current_names(old)) == [
        "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.conv2.weight",
    ]
