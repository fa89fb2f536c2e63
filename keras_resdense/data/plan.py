"""How the batches of a training are made from images."""

from __future__ import annotations

import dataclasses

from keras_resdense.checks import require, require_choice, require_kinds, require_positive, require_rate, require_whole
from keras_resdense.data.contract import ImageContract


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """The part of a recipe that turns images and their classes into batches.

    Attributes:
        batch_size: Images per update of the weights, over all replicas together.
        accumulation: Micro-batches that a replica splits its share of a batch into, so that a large batch fits in
            little memory. Batch norm sees one micro-batch at a time.
        loss: "categorical" cross-entropy over a softmax, or "binary" over a sigmoid of each class.
        label_smoothing: Share of the target that is distributed over all classes.
        image_size: Side of the images in training, in pixels. 0 for the size of the data set's images or, if it
            varies, the size that the network was published for.
        test_size: Side of the images in evaluation and in the saved model, in pixels; 0 for `image_size`.
        crop: Crop of training images: "none", "scale" or "area", see `keras_resdense.data.crops`.
        test_crop: Share of the shorter side that evaluation keeps, if training uses crops.
        padding: Pixels of zeros that are added on each side before a random crop of the original size.
        flip: Whether images are randomly flipped left to right.
        rand_augment: Magnitude, 0–10, of two random operations (1909.13719), see `keras_resdense.data.rand_augment`;
            0 for none.
        erasing: Whether a random rectangle of every other image is filled with noise (1708.04896).
        mixup: α of mixup (1710.09412); 0 for none. With cutmix, each mixes half of the groups of 8 images.
        cutmix: α of cutmix (1905.04899); 0 for none.
        balance: Whether images of rare classes count for more in the loss: their weight falls with the square root of
            the number of images in their class, as their frequency in 1805.00932.
        keep: Whether images are decoded once and stay in memory: training images at up to twice the network's size,
            held-out images as the network takes them.
        repeats: How often an image occurs in succession, with another augmentation each time (1902.05509). An epoch
            keeps its length, so it sees fewer images.
    """

    batch_size: int = 64
    accumulation: int = 1
    loss: str = "categorical"
    label_smoothing: float = 0.0
    image_size: int = 0
    test_size: int = 0
    crop: str = "none"
    test_crop: float = 0.875
    padding: int = 1
    flip: bool = False
    rand_augment: float = 0.0
    erasing: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0
    balance: bool = False
    keep: bool = False
    repeats: int = 1

    def __post_init__(self) -> None:
        require_kinds(self)
        require_whole(self, "batch_size", "accumulation", "repeats")
        require_whole(self, "image_size", "test_size", "padding", least=0)
        require_positive(self, "mixup", "cutmix")
        require_rate(self, "label_smoothing")
        balances = not self.balance or self.loss == "categorical"
        require(self, "balance", balances, "False with the binary loss")
        require_choice(self, "loss", ("categorical", "binary"))
        require_choice(self, "crop", ("none", "scale", "area"))
        require(self, "test_crop", 0 < self.test_crop <= 1, "above 0 and at most 1")
        require(self, "rand_augment", 0 <= self.rand_augment <= 10, "from 0 to 10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How the batches of one training are made.

    Attributes:
        recipe: How images are cropped, augmented and mixed.
        size: Height and width of an image for the network, in pixels.
        classes: Number of classes.
        seed: Seed of order and augmentation.
        class_weights: Factor of each class's loss; None for 1.
    """

    recipe: ImageRecipe
    size: tuple[int, int]
    classes: int
    seed: int = 0
    class_weights: tuple[float, ...] | None = None

    def contract(self, channels: int) -> ImageContract:
        """Returns the image contract of evaluation and of the exported network."""
        if self.recipe.crop == "none":
            return ImageContract(size=self.size, channels=channels)
        return ImageContract(size=self.size, channels=channels, resize="shorter_side", crop=self.recipe.test_crop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportImages:
    """The images that a run's exports are calibrated and compared with.

    Attributes:
        calibration: Data set or folder, see `load_data`, whose training images set the ranges of quantised activations;
            "" for the data of the run.
        calibration_images: Number of these images.
        compared_images: Largest number of held-out images that an export is compared on.
        data_dir: Folder where TFDS keeps its data sets; "" for the run's.
    """

    calibration: str = ""
    calibration_images: int = 256
    compared_images: int = 1024
    data_dir: str = ""

    def __post_init__(self) -> None:
        require_whole(self, "calibration_images", "compared_images")
