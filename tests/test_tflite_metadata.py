"""TFLite Metadata, read with MediaPipe's schema and used by MediaPipe Tasks."""

import dataclasses
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

import keras_resdense
from keras_resdense.data.contract import ImageContract
from keras_resdense.exporting.export import export
from keras_resdense.exporting.formats import EXPORTERS
from tests.test_export import TINY, some_images, tiny, write
from tests.test_folding import randomize
from tests.zoo_facts import sweep

NAMES = ["red", "green, or blue", "ü"]
TRAINABLE = "tflite_trainable"
FORMATS = [name for name in EXPORTERS if name.startswith("tflite")]


def metadata(path):
    """Returns the metadata of a file as MediaPipe's generated code reads them."""
    schema = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")
    content = path.read_bytes()
    model = tflite.Model.GetRootAs(content)
    entries = {model.Metadata(i).Name(): model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
    buffer = model.Buffers(entries[b"TFLITE_METADATA"]).DataAsNumpy().tobytes()
    assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(buffer, 0)
    return schema.ModelMetadataT.InitFromPackedBuf(buffer, 0)


def classify(path, images):
    """Returns MediaPipe Tasks' scores `(images, classes)` and the names of the classes."""
    mediapipe = pytest.importorskip("mediapipe", reason="MediaPipe has no wheel for this machine")
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(path)))
    scores, names = np.zeros((len(images), 3)), {}
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for row, image in zip(scores, images, strict=True):
            answer = classifier.classify(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image))
            for category in answer.classifications[0].categories:
                row[category.index] = category.score
                names[category.index] = category.category_name
    return scores, [names[number] for number in sorted(names)]


@pytest.mark.parametrize("format", sweep([name for name in FORMATS if name != TRAINABLE], {"tflite", "tflite_int8"}))
def test_mediapipe_gives_the_scores_and_the_names(format, tmp_path):
    path, images = tmp_path / "m.tflite", some_images(8)
    write(tiny(), path, format, some_images(), class_names=NAMES)
    scores, names = classify(path, images)
    assert names == NAMES
    assert np.ptp(scores, axis=0).max() > 0.1
    # One step of the output where it is of bytes; kernels of another version may round half a step otherwise.
    np.testing.assert_allclose(scores, EXPORTERS[format].read(path)(images), atol=1e-5 if format == "tflite" else 0.01)


@pytest.mark.sweep
def test_mediapipe_refuses_a_file_that_can_be_trained(tmp_path):
    write(tiny(), tmp_path / "m.tflite", TRAINABLE, class_names=NAMES)
    with pytest.raises(ValueError, match="single subgraph"):
        classify(tmp_path / "m.tflite", some_images(1))


@pytest.mark.parametrize("format", sweep(["tflite", "tflite_int8"], {"tflite"}))
@pytest.mark.parametrize(
    "order, mean, std", [("rgb", (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), ("bgr", (103.9, 116.8, 123.7), (1.0,))]
)
def test_mediapipe_gives_the_scores_of_networks_that_take_normalised_pixels(format, order, mean, std, tmp_path):
    model = randomize(
        keras_resdense.create_model(TINY, input_shape=(32, 32, 3), classes=3, classifier_activation="softmax")
    )
    model.image_contract = ImageContract(size=(32, 32), order=order, mean=mean, std=std)
    images = some_images()
    normalised = ((images[..., ::-1] if order == "bgr" else images) - np.array(mean)) / np.array(std)
    expected = model.predict(normalised.astype("float32"), verbose=0)
    write(model, tmp_path / "m.tflite", format, normalised)
    scores, _ = classify(tmp_path / "m.tflite", images)
    read = EXPORTERS[format].read(tmp_path / "m.tflite")
    np.testing.assert_allclose(scores, read(images), atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.03
    # What 8 bits cost, the export has found to be within its tolerance.
    np.testing.assert_allclose(scores, expected, atol=1e-5 if format == "tflite" else 0.3)
    contract = read.image_contract
    assert contract == ImageContract(size=(32, 32))
    found = metadata(tmp_path / "m.tflite")
    assert found.subgraphMetadata[0].inputTensorMetadata[0].description.decode() == contract.describe()
    assert found.subgraphMetadata[0].outputTensorMetadata[0].stats.max == [1.0]
    assert [file.name for file in found.associatedFiles] == [b"image_contract.json"]
    with pytest.raises(ValueError, match="images have pixels from .* prepare the images with"):
        write(model, tmp_path / "other.tflite", format, images)


def test_metadata_tell_input_output_and_licence(tmp_path):
    exporter = dataclasses.replace(EXPORTERS["tflite"], license="Apache-2.0")
    model = tiny()
    write(model, tmp_path / "m.tflite", exporter, class_names=NAMES)
    found = metadata(tmp_path / "m.tflite")
    assert (found.name.decode(), found.license, found.minParserVersion) == (model.name, b"Apache-2.0", b"1.0.0")
    assert found.description.decode() == f"Classifies images into {model.output_shape[-1]} classes."
    (source,) = found.subgraphMetadata[0].inputTensorMetadata
    (target,) = found.subgraphMetadata[0].outputTensorMetadata
    assert (source.name, target.name) == (b"images", b"outputs")
    assert source.content.contentProperties.colorSpace == 1
    size = source.content.contentProperties.defaultSize
    assert (size.width, size.height) == (32, 32)
    assert [(unit.options.mean, unit.options.std) for unit in source.processUnits] == [([0.0], [1.0])]
    assert (target.stats.min, target.stats.max) == ([0.0], [1.0])
    (labels,) = target.associatedFiles
    assert (labels.name, labels.type) == (b"labels.txt", 2)
    with zipfile.ZipFile(tmp_path / "m.tflite") as archive:
        assert archive.read("labels.txt").decode().splitlines() == NAMES


def test_without_names_and_of_other_channels(tmp_path):
    write(tiny(1), tmp_path / "m.tflite", "tflite", some_images(4, channels=1))
    subgraph = metadata(tmp_path / "m.tflite").subgraphMetadata[0]
    assert subgraph.inputTensorMetadata[0].content.contentProperties.colorSpace == 2
    assert subgraph.outputTensorMetadata[0].associatedFiles is None
    assert EXPORTERS["tflite"].read(tmp_path / "m.tflite").class_names is None


@pytest.mark.parametrize("images", [some_images() / 255, None], ids=["0-1", "random"])
def test_what_is_not_known_is_not_claimed(images, tmp_path):
    export(tiny(), tmp_path / "m.tflite", "tflite", images)
    assert metadata(tmp_path / "m.tflite").subgraphMetadata[0].inputTensorMetadata[0].processUnits is None
    with pytest.raises(Exception, match="NormalizationOptions"):
        classify(tmp_path / "m.tflite", some_images(1))


@pytest.mark.parametrize("format", sweep(FORMATS, {"tflite", "tflite_int8"}))
def test_tensors_have_names_and_weights_are_aligned(format, tmp_path):
    write(tiny(), tmp_path / "m.tflite", format, class_names=NAMES)
    content = (tmp_path / "m.tflite").read_bytes()
    model = tflite.Model.GetRootAs(content)
    graph = model.Subgraphs(0)
    assert graph.Tensors(graph.Inputs(0)).Name() == b"images"
    assert graph.Tensors(graph.Outputs(0)).Name() == b"outputs"
    start = np.frombuffer(content, "uint8").__array_interface__["data"][0]
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    offsets = [b.DataAsNumpy().__array_interface__["data"][0] - start for b in buffers if b.DataLength()]
    assert len(offsets) > 10 and not any(offset % 16 for offset in offsets)


def test_the_same_model_is_the_same_file(tmp_path):
    model = tiny()
    made = [write(model, tmp_path / name / "m.tflite", "tflite", class_names=NAMES) for name in "ab"]
    assert made[0].sha256 == made[1].sha256
