"""Core ML: the reading of its programs against TensorFlow, and what the package tells Apple's tools."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_resdense
from keras_resdense.data.contract import ImageContract
from keras_resdense.exporting.export import export
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.read import load_runner
from tests.test_export import PIECES, build, some_images, write

L = keras.layers
EXACT = dataclasses.replace(EXPORTERS["coreml"], precision="float32", tolerance=1e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("row", PIECES)
def test_every_family_in_float32_and_float16(row, tmp_path):
    model = build(row)
    assert write(model, tmp_path / "exact.mlpackage", EXACT).difference < 1e-5
    assert write(model, tmp_path / "half.mlpackage", "coreml").difference < 0.01


@pytest.mark.parametrize(
    "layer",
    [
        L.Conv2D(4, 3, 2, "same"),
        L.Conv2D(4, (2, 3), padding="same", activation="relu"),
        L.Conv2D(6, 3, 2, "same", groups=2, activation="relu"),
        L.DepthwiseConv2D(3, 2, "same", activation="sigmoid"),
        L.MaxPooling2D(3, 2, "same"),
        L.AveragePooling2D(3, 2, "same"),
        L.AveragePooling2D(2),
        L.ZeroPadding2D(((1, 0), (2, 1))),
    ],
    ids=lambda layer: layer.name,
)
def test_operations_are_read_as_keras_computes_them(layer, tmp_path):
    """Odd sides make all paddings asymmetric somewhere."""
    images = keras.Input((9, 8, 3))
    x = layer(L.Conv2D(4, 1, name="first")(images))
    model = keras.Model(images, L.Dense(5, activation="softmax")(L.Flatten()(x)))
    given = np.random.default_rng(0).integers(0, 256, (3, 9, 8, 3)).astype("float32")
    assert export(model, tmp_path / "m.mlpackage", EXACT, given).difference < 1e-5


def test_an_operation_that_is_not_read_is_named(tmp_path):
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, L.Dense(2)(L.GlobalAveragePooling2D()(keras.ops.erf(images))))
    with pytest.raises(ValueError, match="operations that are not read: {'erf'}"):
        export(model, tmp_path / "m.mlpackage", "coreml")
    assert not list(tmp_path.iterdir())


def test_apples_tools_find_an_image_and_a_classifier(tmp_path):
    from coremltools.models import MLModel

    model = keras_resdense.create_model("resnet20", input_shape=(16, 16, 3), classes=2)
    model.image_contract = ImageContract(size=(16, 16), mean=(120.0, 110.0, 100.0), std=(50.0,) * 3, order="bgr")
    model.class_names = ("cat", "dög")
    pixels = some_images(4)[:, :16, :16]
    images = (pixels[..., ::-1] - model.image_contract.mean) / model.image_contract.std
    made = export(model, tmp_path / "m.mlpackage", "coreml", images)
    package = MLModel(str(made.path), skip_model_load=True)
    description = package.get_spec().description
    image = description.input[0].type.imageType
    assert (description.input[0].name, image.width, image.height) == ("images", 16, 16)
    assert image.colorSpace == image.RGB
    assert [output.name for output in description.output] == ["classLabel", "classLabel_probs"]
    assert (description.predictedFeatureName, description.predictedProbabilitiesName) == (
        "classLabel",
        "classLabel_probs",
    )
    run = load_runner(made.path)
    assert run.class_names == ("cat", "dög") and run.image_contract.takes_pixels and run.output_shape == (None, 2)
    with pytest.raises(ValueError, match="runs on Apple's systems only"):
        keras_resdense.load_model(made.path, runtime="auto")
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(run(pixels.astype("float32")), expected, atol=0.01)


def test_without_class_names_the_output_is_named_and_grey_is_grey(tmp_path):
    from coremltools.models import MLModel

    model = build("resnet20", 1)
    made = write(model, tmp_path / "m.mlpackage", "coreml")
    description = MLModel(str(made.path), skip_model_load=True).get_spec().description
    assert [output.name for output in description.output] == ["outputs"]
    image = description.input[0].type.imageType
    assert image.colorSpace == image.GRAYSCALE


def test_bad_input(tmp_path):
    model, path = build("resnet20"), tmp_path / "m.mlpackage"
    with pytest.raises(ValueError, match=r"must end in \.mlpackage"):
        export(model, tmp_path / "m", "coreml")
    with pytest.raises(ValueError, match="precision is 'int8'; it must be 'float16' or 'float32'"):
        export(model, path, dataclasses.replace(EXACT, precision="int8"))
    with pytest.raises(ValueError, match=r"in RGB or grey; this model takes \(32, 32, 4\)"):
        export(build("resnet20", 4), path, "coreml")
    with pytest.raises(ValueError, match="are pixels 0–255, and these images are not"):
        export(model, path, "coreml", some_images(2) / 255)
    assert not list(tmp_path.iterdir())
