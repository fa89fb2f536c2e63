"""Analysis, compared with published numbers, numerical probes and computations by hand; and its pictures."""

import csv
import dataclasses
import re
import xml.etree.ElementTree as ET

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_resdense
from keras_resdense import VARIANTS, feature_reuse, grad_cam, gradient_norms, summarise
from keras_resdense.__main__ import main
from keras_resdense.insight import analysis, drawing
from keras_resdense.networks import zoo
from tests.zoo_facts import sweep

RANDOM = np.random.default_rng(0)
#: Of torchvision's model cards, "GFLOPS", and of timm's, "Activations (M)": outputs of convolutions.
PUBLISHED = {
    "resnet18": (1.81, 2.5),
    "resnet50": (4.09, 11.1),
    "resnet101": (7.80, 16.2),
    "resnext50_32x4d": (4.23, 14.4),
    "densenet121": (2.83, 6.9),
    "densenet201": (4.29, 7.9),
}
#: Of https://gist.github.com/samson-wang/a6073c18f2adf16e0ab5fb95b53db3e6, but the `_keras` rows, which stride as
#: TF-Slim does: Araujo et al. 2019, Computing Receptive Fields of Convolutional Neural Networks, table 1.
FIELDS = {
    "resnet18": (11, 43, 99, 211, 435),
    "resnet34": (11, 59, 179, 547, 899),
    "resnet50": (11, 35, 91, 267, 427),
    "resnet101": (11, 35, 91, 811, 971),
    "resnet50v2_keras": (483,),
    "resnet101v2_keras": (1027,),
    "resnet152v2_keras": (1507,),
}


def small(variant, depths=(1, 2, 1), **changes):
    """Returns the row of a variant with few blocks and channels."""
    row = VARIANTS[variant]
    narrow = {"growth_rate": 4} if "dense" in variant else {"filters": (4, 8, 8)[: len(depths)]}
    return dataclasses.replace(row, depths=depths, **narrow, **changes)


def classifier(variant, side=32, **changes):
    return keras_resdense.create_model(small(variant, **changes), input_shape=(side, side, 3), classes=4)


#: One of each family and dialect.
FAMILIES = {
    "basic": small("resnet18"),
    "plain": small("plainnet18"),
    "bottleneck": small("resnet50"),
    "stride in the 1x1": small("resnet50v1"),
    "pooled shortcut": small("resnet50d"),
    "gates": small("seresnet18"),
    "pre-activation": small("resnet18v2"),
    "keras.applications": small("resnet50v2_keras"),
    "shortcut A": small("resnet20"),
    "models in the model": small("resnet1202"),
    "dense": small("densenet121"),
    "dense without bottleneck": small("densenet40_12"),
    "dilated": small("resnet50", output_stride=8),
}


@pytest.fixture(scope="module", params=sweep(PUBLISHED, ("resnet18", "densenet121")))
def published(request):
    return keras_resdense.create_model(request.param), PUBLISHED[request.param]


def test_totals_are_the_published_ones(published):
    model, (giga_macs, mega_activations) = published
    for per in ("stage", "block", "layer"):
        parts = summarise(model, per)
        assert sum(part.parameters for part in parts) == keras_resdense.count_parameters(model)
        assert sum(part.macs for part in parts) == keras_resdense.count_macs(model)
    assert sum(part.macs for part in parts) / 1e9 == pytest.approx(giga_macs, abs=0.005)
    convolutions = [part for part in parts if re.search(r"_conv\d?$", part.name)]
    assert sum(np.prod(part.output_shape) for part in convolutions) / 1e6 == pytest.approx(mega_activations, abs=0.05)
    floats = sum(np.prod(layer.output.shape[1:]) for layer in model.layers[1:])
    assert sum(part.activation_bytes for part in parts) == 4 * floats


@pytest.mark.parametrize("variant", sweep(FIELDS, ("resnet18", "resnet50v2_keras")))
def test_receptive_fields_are_the_published_ones(variant):
    *_, last = parts = summarise(keras_resdense.create_model(variant))
    seen = [part.receptive_field for part in parts if part is not last]
    assert tuple(seen[-len(FIELDS[variant]) :]) == FIELDS[variant]
    assert last.receptive_field is None


@pytest.mark.parametrize(
    "family", sweep(FAMILIES, ("pooled shortcut", "keras.applications", "gates", "dense", "dilated"))
)
def test_receptive_field_is_what_an_output_pixel_answers_to(family):
    """One row of a dark image at a time is bright. All weights are positive, so nothing cancels out."""
    rows = 256
    model = keras_resdense.create_model(FAMILIES[family], include_top=False, input_shape=(rows, 32, 1))
    for weight in model.trainable_weights:
        if weight.path.endswith("kernel"):
            weight.assign(np.full(weight.shape, 1 / np.prod(weight.shape[:-1])))
    images = np.zeros((rows, rows, 32, 1), "float32")
    images[range(rows), range(rows)] = 1
    maps = np.concatenate([model(part) for part in np.split(images, 4)])
    answered = np.flatnonzero(maps[:, maps.shape[1] // 2].max((1, 2)) > 0)
    assert 0 < answered[0] and answered[-1] < rows - 1
    parts = [part for part in summarise(model) if part.name != "head"]
    assert parts[-1].receptive_field == answered[-1] - answered[0] + 1
    assert parts[-1].output_shape == maps.shape[1:]


def test_parts_are_named_from_the_image_to_the_classes():
    model = keras_resdense.DenseNet40_12()
    stages = ["stem", "stage2", "stage2_transition", "stage3", "stage3_transition", "stage4", "head"]
    assert [part.name for part in summarise(model)] == stages
    blocks = summarise(model, "block")
    assert [part.name for part in blocks[:3]] == ["stem", "stage2_layer1", "stage2_layer2"] and len(blocks) == 40
    # Table 1 of 1608.06993 for the CIFAR network: 16 channels, 12 more with each of 12 layers.
    assert blocks[12].output_shape == (32, 32, 160) and blocks[12].parameters == 2 * 148 + 9 * 148 * 12
    nested = classifier("resnet1202")
    flat = classifier("resnet1202", nested_stages=False)
    assert summarise(nested, "block") == summarise(flat, "block")


def test_parts_of_a_network_that_is_a_layer():
    backbone = keras_resdense.create_model(small("resnet18"), include_top=False, input_shape=(32, 32, 3))
    images = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(keras.layers.ZeroPadding2D(0)(images)))
    model = keras.Model(images, keras.layers.Dense(7)(pooled))
    *parts, head = summarise(model)
    assert [part.receptive_field for part in parts] == [p.receptive_field for p in summarise(backbone)]
    assert head.name == "head" and head.output_shape == (7,)


def test_tables_and_files_hold_all_parts(tmp_path):
    parts = summarise(classifier("densenet121"), "block")
    lines = analysis.format_parts(parts).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*(part.name for part in parts), "total"]
    assert lines[-1].split()[1] == f"{sum(part.parameters for part in parts):,}"
    analysis.write_parts(parts, tmp_path / "deeper" / "parts.csv")
    with open(tmp_path / "deeper" / "parts.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    for part, row in zip(parts, read, strict=True):
        shape = tuple(map(int, row.pop("output_shape").split("×")))
        field = row.pop("receptive_field")
        found = {"name": row.pop("name"), **{name: int(value) for name, value in row.items()}}
        assert part == analysis.PartSummary(output_shape=shape, receptive_field=int(field) if field else None, **found)


@pytest.mark.parametrize("family", sweep(FAMILIES, ("gates", "models in the model", "dense")))
def test_grad_cam_is_the_class_activation_map(family):
    """Both are equal before average pooling and one dense layer (1610.02391, section 3.1)."""
    model = keras_resdense.create_model(FAMILIES[family], input_shape=(64, 48, 3), classes=4)
    images = RANDOM.normal(size=(3, 64, 48, 3)).astype("float32")
    maps = keras.Model(model.input, model.get_layer("avg_pool").input)(images).numpy()
    kernel = model.get_layer("predictions").kernel.numpy()
    probabilities = model(images).numpy()
    for classes in ([2, 0, 1], None):
        chosen = probabilities.argmax(-1) if classes is None else classes
        expected = np.maximum(np.einsum("bhwc,cb->bhw", maps, kernel[:, chosen]), 0)
        expected = tf.image.resize(expected[..., None], (64, 48)).numpy()[..., 0]
        expected /= np.maximum(expected.max((1, 2), keepdims=True), 1e-30)
        heat = grad_cam(model, images, classes)
        assert heat.shape == (3, 64, 48) and heat.min() >= 0 and heat.max() <= 1
        np.testing.assert_allclose(heat, expected, atol=1e-4)
    np.testing.assert_array_equal(model(images), probabilities)


def test_grad_cam_finds_the_patch_that_speaks_for_the_class():
    """The network responds to brightness. It is a frozen layer below a head whose class 1 is bright."""
    backbone = keras_resdense.create_model(small("resnet20"), include_top=False, input_shape=(64, 64, 1))
    for weight in backbone.trainable_weights:
        if weight.path.endswith("kernel"):
            weight.assign(np.full(weight.shape, 1 / np.prod(weight.shape[:-1])))
    backbone.trainable = False
    head = keras.layers.Dense(2, activation="softmax")
    model = keras.Sequential([keras.Input((64, 64, 1)), backbone, keras.layers.GlobalAveragePooling2D(), head])
    head.kernel.assign(np.repeat([[-1.0, 1.0]], backbone.output_shape[-1], axis=0))
    images = np.zeros((2, 64, 64, 1), "float32")
    images[0, 8:16, 40:52] = images[1, 44:56, 4:16] = 1
    heat = grad_cam(model, images, [1, 1])
    for image, warmth in zip(images, heat, strict=True):
        assert image[..., 0].flat[warmth.argmax()] == 1
        assert warmth[image[..., 0] == 1].mean() > 5 * warmth[image[..., 0] == 0].mean()
    assert grad_cam(model, images, [0, 0]).max() == 0


@pytest.mark.parametrize("family", ["shortcut A", "pre-activation", "models in the model", "dense"])
def test_gradient_norms_are_those_of_the_tape_and_change_nothing(family):
    row = dataclasses.replace(FAMILIES[family], head_dropout=0.0)
    model = keras_resdense.create_model(row, input_shape=(32, 32, 3), classes=4)
    images, labels = RANDOM.normal(size=(6, 32, 32, 3)).astype("float32"), RANDOM.integers(0, 4, 6)
    before = model.get_weights()
    norms = gradient_norms(model, images, labels)
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)
    with tf.GradientTape() as tape:
        probabilities = model(images, training=True)
        loss = -tf.reduce_mean(tf.math.log(tf.gather(probabilities, labels, batch_dims=1)))
    kernels = {v.path: v for v in model.trainable_variables if v.path.endswith("conv/kernel") or "_conv" in v.path}
    gradients = tape.gradient(loss, [variable.value for variable in kernels.values()])
    expected = {path.split("/")[-2]: float(tf.norm(found)) for path, found in zip(kernels, gradients, strict=True)}
    assert {found.layer: found.norm for found in norms} == pytest.approx(expected, rel=1e-3)
    assert norms[0].layer == "stem_conv1"
    names = [found.layer for found in norms if "_shortcut" not in found.layer]
    assert names == sorted(names, key=lambda name: [name[:5] == "stage", name])


def test_gradient_norms_leave_out_what_is_frozen():
    model = classifier("resnet18")
    keras_resdense.freeze(model, "stage3")
    images, labels = RANDOM.normal(size=(4, 32, 32, 3)).astype("float32"), [0, 1, 2, 3]
    assert {found.layer.split("_")[0] for found in gradient_norms(model, images, labels)} == {"stage4"}


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("include_top", [True, False])
def test_feature_reuse_of_known_weights(bottleneck, include_top):
    row = small("densenet121", depths=(2, 3), bottleneck=bottleneck)
    model = keras_resdense.create_model(row, include_top, input_shape=(32, 32, 3), classes=5 if include_top else None)
    expected = {}
    # The stem makes 2k = 8 channels; the transition halves 8 + 2·4.
    for stage, depth in (("stage2", 2), ("stage3", 3)):
        names = [f"{stage}_layer{layer}_conv1" for layer in range(1, depth + 1)]
        names += ["stage2_transition_conv"] if stage == "stage2" else ["predictions"] * include_top
        expected[stage] = np.full((depth + 1, len(names)), np.nan)
        for reader, name in enumerate(names):
            kernel = model.get_layer(name).kernel
            values = RANDOM.choice([-1.0, 1.0], size=kernel.shape)
            for source in range(min(reader, depth) + 1):
                expected[stage][source, reader] = weight = RANDOM.uniform(0.1, 1)
                start = 0 if source == 0 else 8 + 4 * (source - 1)
                values[..., start : 8 + 4 * source, :] *= weight
            kernel.assign(values)
    reuse = feature_reuse(model)
    assert list(reuse) == ["stage2", "stage3"]
    for block, found in reuse.items():
        np.testing.assert_allclose(found, expected[block], rtol=1e-5)


BOXES = {"basic": 4, "plain": 4, "pre-activation": 4, "models in the model": 4, "dense": 6}


@pytest.mark.parametrize("family", BOXES)
def test_pictures_have_a_box_for_each_block_and_an_arc_for_each_shortcut(family, tmp_path):
    model = keras_resdense.create_model(FAMILIES[family], input_shape=(32, 32, 3), classes=4)
    drawing.save_figure(drawing.draw_network(model), tmp_path / "network.svg")
    ids = {element.get("id") for element in ET.parse(tmp_path / "network.svg").iter()}
    blocks = {part.name for part in summarise(model, "block") if part.name.startswith("stage")}
    assert blocks <= ids and len(blocks) == BOXES[family]
    shortcuts = {name for name in ids if str(name).endswith("_shortcut")}
    assert shortcuts == (set() if family in ("plain", "dense") else {f"{name}_shortcut" for name in blocks})
    bands = {name for name in ids if str(name).endswith("_concatenation")}
    assert bands == ({f"stage{stage}_concatenation" for stage in (2, 3, 4)} if family == "dense" else set())


def test_pictures_tell_shortcuts_apart(tmp_path):
    for variant, kinds in (("resnet18", {"identity shortcut", "projection shortcut"}), ("plainnet18", set())):
        (axes,) = drawing.draw_network(classifier(variant)).axes
        assert {text.get_text() for text in axes.get_legend().get_texts()} >= kinds
        lines = {patch.get_gid(): patch.get_edgecolor() for patch in axes.patches}
        assert len({lines[name] for name in lines if str(name).endswith("_shortcut")}) == len(kinds)


def test_data_become_pictures(tmp_path):
    model = classifier("densenet121")
    images, labels = RANDOM.uniform(0, 255, size=(2, 32, 32, 3)), [0, 1]
    figures = {
        "network": drawing.draw_network(model),
        "reuse": drawing.draw_feature_reuse(feature_reuse(model)),
        "norms": drawing.draw_gradient_norms({"dense": gradient_norms(model, images, labels)}),
        "heat": drawing.draw_grad_cam(images, grad_cam(model, images), ["cat", "dog"]),
    }
    for name, figure in figures.items():
        drawing.save_figure(figure, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
    line = figures["norms"].axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(line, [found.norm for found in gradient_norms(model, images, labels)], rtol=1e-3)
    assert len(figures["reuse"].axes) == 4


def test_summary_of_the_command_line(tmp_path, capsys):
    model = classifier("resnet20")
    model.save(tmp_path / "model.keras")
    command = ["summary", str(tmp_path / "model.keras")]
    assert main([*command, "--csv", str(tmp_path / "stages.csv"), "--picture", str(tmp_path / "network.png")]) == 0
    assert capsys.readouterr().out == analysis.format_parts(summarise(model)) + "\n"
    assert len((tmp_path / "stages.csv").read_text().splitlines()) == 1 + len(summarise(model))
    assert (tmp_path / "network.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--blocks"]) == 0
    assert "\nstage3_block2 " in capsys.readouterr().out
    assert main([*command, "--layers"]) == 0
    assert "stage3_block2_conv1 (Conv2D)" in capsys.readouterr().out


def subclassed():
    class Network(keras.Model):
        input_shape = (None, 8, 8, 3)

        def call(self, images):
            return images

    return Network(name="mine")


def foreign():
    images = keras.Input((8, 8, 3), name="images")
    return keras.Model(images, keras.layers.Softmax(name="shares")(keras.layers.Flatten()(images)), name="mine")


def holding():
    network = keras_resdense.create_model(small("resnet20"), input_shape=(8, 8, 3), classes=2, name="inner")
    images = keras.Input((8, 8, 3))
    return keras.Model(images, network(images), name="outer")


IMAGES = np.zeros((1, 8, 8, 3), "float32")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: summarise(foreign()), "mine has no stages"),
        (lambda: summarise(foreign(), "blocks"), "per is 'blocks'; it must be 'stage', 'block' or 'layer'"),
        (lambda: summarise(subclassed()), "mine is a Network whose graph of layers is unknown"),
        (lambda: summarise(keras_resdense.ResNet20(False)), "build it with a fixed input_shape"),
        (lambda: grad_cam(holding(), IMAGES), "is inside its layer inner: pass that layer"),
        (lambda: grad_cam(foreign(), IMAGES), "mine ends in shares, a Softmax; it must end in Dense or Activation"),
        (lambda: gradient_norms(foreign(), IMAGES, [0]), "ends in shares, a Softmax"),
        (lambda: feature_reuse(classifier("resnet20")), "has no dense blocks"),
        (lambda: drawing.check_suffix("network.pdf"), "network.pdf does not end in .png or .svg"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_picture_s_name_is_refused_before_the_network_is_built(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(zoo, "create_model", None)
    assert main(["summary", "resnet20", "--picture", str(tmp_path / "network.jpg")]) == 1
    assert "network.jpg does not end in .png or .svg" in capsys.readouterr().err
