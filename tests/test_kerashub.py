"""Our networks as image encoders of KerasHub's task models: build, train a step, save, open; needs keras-hub."""

import keras
import numpy as np
import pytest

import keras_resdense

pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings("ignore")]
VARIANTS = ["resnet18", "densenet121"]
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")


def encoder(variant):
    return keras_resdense.as_backbone(keras_resdense.create_model(variant, include_top=False, input_shape=(64, 64, 3)))


def saved_and_opened(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_object_detector(variant, tmp_path):
    import keras_hub

    backbone = keras_hub.models.RetinaNetBackbone(encoder(variant), 3, 5, use_p5=False, image_shape=(64, 64, 3))
    model = keras_hub.models.RetinaNetObjectDetector(backbone, 4, bounding_box_format="xyxy")
    model.compile("adam")
    boxes = {"boxes": np.array([[[4, 4, 40, 40]]] * 2, "float32"), "labels": np.array([[1]] * 2)}
    model.fit(IMAGES, boxes, epochs=1, verbose=0)
    again = saved_and_opened(model, tmp_path)
    assert isinstance(again.backbone.image_encoder, keras_resdense.Backbone)
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_segmenter(variant, tmp_path):
    import keras_hub

    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder(variant),
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
    )
    model = keras_hub.models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=3, activation="softmax")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), metrics=[])
    model.fit(IMAGES, np.zeros((2, 64, 64), "int32"), epochs=1, verbose=0)
    again = saved_and_opened(model, tmp_path)
    assert isinstance(again.backbone.image_encoder, keras_resdense.Backbone)
    np.testing.assert_allclose(again.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=1e-5)
