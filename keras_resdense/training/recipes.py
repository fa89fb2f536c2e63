"""Training recipes. A recipe is one row that names its network and its data."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

from keras_resdense.checks import (
    pick,
    require,
    require_choice,
    require_kinds,
    require_positive,
    require_rate,
    require_whole,
)
from keras_resdense.data.plan import ImageRecipe

#: File of a run with its recipe and settings.
RECIPE_FILE = "recipe.json"
#: Keras's dtype policies for training.
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimisationRecipe:
    """The part of a recipe that concerns optimisation.

    Attributes:
        epochs: Passes over the training images.
        optimizer: "sgd", "lamb" (1904.00962), "adamw" (1711.05101) or "muon" (2502.16982), which trains the kernels
            of convolutions, with AdamW for the rest.
        learning_rate: Peak learning rate for a batch of `learning_rate_batch` images; it grows with the batch
            (1706.02677, section 2.1).
        learning_rate_batch: Batch size that the learning rate was published for.
        momentum: Momentum of SGD.
        nesterov: Whether the momentum is Nesterov's.
        warmup_epochs: Epochs of warm-up, at most half of all. The learning rate rises linearly from 0 before
            a cosine decay, and stays at a tenth of the peak before a decay in steps.
        milestones: Epochs after which the learning rate is divided by 10; none for a cosine decay to 0.
        weight_decay: λ for convolution and dense kernels, not for batch norm and biases. With SGD it is part of the
            loss; otherwise it is decoupled from the gradients (1711.05101).
        ema: Decay per step of the exponential moving average of the weights, which is evaluated and saved; 0 for the
            weights themselves.
        frozen_epochs: Number of first epochs in which only the classifier is trained.
        frozen_learning_rate: Learning rate in these epochs, for `learning_rate_batch` images.
        quantise: "int8" for quantisation-aware training in the last epochs (1712.05877), see `quantisation_aware`;
            "int4" for the same with 4-bit weights and 8-bit activations; "" for none.
        quantised_epochs: Number of these epochs. They use a cosine decay from a hundredth of `learning_rate`, without
            weight decay. The schedule of the other epochs ends before them.
    """

    epochs: int = 30
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    learning_rate_batch: int = 64
    momentum: float = 0.9
    nesterov: bool = True
    warmup_epochs: float = 3.0
    milestones: tuple[float, ...] = ()
    weight_decay: float = 1e-4
    ema: float = 0.0
    frozen_epochs: int = 0
    frozen_learning_rate: float = 0.0
    quantise: str = ""
    quantised_epochs: int = 2

    def __post_init__(self) -> None:
        require_kinds(self)
        require_whole(self, "epochs", "learning_rate_batch")
        require_whole(self, "frozen_epochs", least=0)
        require_positive(self, "learning_rate", "frozen_learning_rate", "warmup_epochs", "weight_decay")
        require_rate(self, "ema", "momentum")
        require_choice(self, "optimizer", ("sgd", "lamb", "adamw", "muon"))
        require_choice(self, "quantise", ("", "int8", "int4"))
        require_whole(self, "quantised_epochs")
        floats = self.epochs - (self.quantised_epochs if self.quantise else 0)
        require(self, "quantised_epochs", floats > 0, f"less than epochs, {self.epochs}")
        require(self, "frozen_epochs", self.frozen_epochs < floats, f"less than the epochs in floats, {floats}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(ImageRecipe, OptimisationRecipe):
    """Everything that determines the result of a training, except the seed.

    A recipe also has the fields of `ImageRecipe` and `OptimisationRecipe`.

    Attributes:
        model: Name of a variant.
        data: "digits", the name of a TFDS data set, or a folder of images.
        drop_path: Stochastic depth of a residual network, see `ResNet`.
        dropout: Dropout of a dense network's layers, see `DenseNet`.
        weights: Where the network's weights come from: "imagenet" for the best published set with a free licence, the
            name of a published set, a file, or "" for random ones.
    """

    model: str = "resnet20"
    data: str = "digits"
    drop_path: float = 0.0
    dropout: float = 0.0
    weights: str = ""

    def __post_init__(self) -> None:
        ImageRecipe.__post_init__(self)
        OptimisationRecipe.__post_init__(self)
        require_rate(self, "drop_path", "dropout")

    def scaled(self, learning_rate: float) -> float:
        """Scales a learning rate of this recipe to its batch size."""
        return learning_rate * self.batch_size / self.learning_rate_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A row of `RECIPES`.

    Attributes:
        recipe: The recipe, for the network named first in `published`.
        source: Paper and section, and the differences from it.
        published: Published results.
        measured: Results of this package.
    """

    recipe: Recipe
    source: str
    published: str
    measured: str = "not measured"


_cifar = partial(
    Recipe,
    data="cifar10",
    batch_size=128,
    learning_rate_batch=128,
    nesterov=False,
    warmup_epochs=0,
    padding=4,
    flip=True,
)
_densenet_cifar = partial(
    _cifar,
    model="densenet40_12",
    epochs=300,
    batch_size=64,
    learning_rate_batch=64,
    nesterov=True,
    milestones=(150, 225),
)
_imagenet = partial(
    Recipe,
    data="imagenet2012",
    batch_size=256,
    learning_rate_batch=256,
    warmup_epochs=0,
    image_size=224,
    padding=0,
    flip=True,
    crop="area",
)
_strikes_back_a2 = _imagenet(
    model="resnet50",
    epochs=300,
    batch_size=2048,
    learning_rate_batch=2048,
    optimizer="lamb",
    learning_rate=5e-3,
    warmup_epochs=5,
    weight_decay=0.02,
    loss="binary",
    drop_path=0.05,
    test_crop=0.95,
    rand_augment=7.0,
    mixup=0.1,
    cutmix=1.0,
    repeats=3,
)
_strikes_back = partial(
    Published,
    source="2110.00476, table 2; RandAugment is timm's rand-m7-mstd0.5-inc1 (m6 for A3) with bilinear interpolation,"
    " and LAMB decays weights apart from its trust ratio",
)

_fine_tune = Recipe(
    model="resnet50",
    epochs=15,
    batch_size=32,
    learning_rate=0.01,
    learning_rate_batch=32,
    warmup_epochs=1,
    image_size=224,
    padding=0,
    flip=True,
    crop="area",
    frozen_epochs=5,
    frozen_learning_rate=0.1,
)

#: Every recipe: its name and its row. Change one with `dataclasses.replace(row.recipe, field=…)`.
RECIPES: dict[str, Published] = {
    "digits": Published(
        recipe=Recipe(),
        source="this package; the schedule of 1812.01187",
        published="nothing",
        measured="ResNet-20: 98.9 % of the 360 digits held out",
    ),
    "fast": Published(
        recipe=Recipe(
            data="fashion_mnist",
            epochs=21,
            batch_size=128,
            learning_rate=0.2,
            learning_rate_batch=128,
            warmup_epochs=2,
            weight_decay=5e-4,
            label_smoothing=0.1,
            padding=2,
            flip=True,
        ),
        source="this package: the most that 21 epochs of ResNet-20 give; the schedule of 1812.01187",
        published="nothing",
        measured="ResNet-20: 94.4 % of Fashion-MNIST's test images",
    ),
    "small_folder": Published(
        recipe=Recipe(
            model="resnet18",
            batch_size=32,
            optimizer="adamw",
            learning_rate=1e-3,
            learning_rate_batch=32,
            warmup_epochs=2,
            weight_decay=0.05,
            label_smoothing=0.1,
            image_size=64,
            padding=6,
            flip=True,
        ),
        source="this package, for some hundreds to thousands of images of one's own; `train` adapts it to them",
        published="nothing",
    ),
    "small_folder_pretrained": Published(
        recipe=dataclasses.replace(_fine_tune, weights="imagenet", label_smoothing=0.1),
        source="this package: published weights, the classifier first, then all layers at a lower rate; `train` adapts"
        " it to the images",
        published="nothing",
    ),
    "fine_tune": Published(
        recipe=_fine_tune,
        source="this package: the classifier first, then all layers at a lower rate; give it weights and data",
        published="nothing",
    ),
    "resnet_cifar": Published(
        recipe=_cifar(model="resnet20", epochs=164, milestones=(82, 123)),
        source="1512.03385, section 4.2: 64,000 steps, the rate divided after 32,000 and 48,000",
        published="ResNet-20: 8.75 % error on CIFAR-10; 32: 7.51 %; 44: 7.17 %; 56: 6.97 %; 110, warmed up: 6.61 %"
        " in the mean of five runs, 6.43 % in the best",
    ),
    "resnet_imagenet": Published(
        recipe=_imagenet(model="resnet50", epochs=120, milestones=(30, 60, 90), nesterov=False, crop="scale"),
        source="1512.03385, section 3.4: 600,000 steps; without its colour augmentation, with its plateaus, which it"
        " does not date, after 30, 60 and 90 epochs",
        published="ResNet-50: 22.85 % top-1 error on ImageNet with ten crops; 101: 21.75 %; 152: 21.43 %",
    ),
    "preact_cifar": Published(
        recipe=_cifar(model="preactresnet110", epochs=164, milestones=(82, 123), warmup_epochs=1.024),
        source="1603.05027, appendix: a tenth of the rate for the first 400 steps",
        published="PreActResNet-110: 6.37 % error on CIFAR-10, median of five runs; 164: 5.46 %; 1001: 4.92 %",
    ),
    "densenet_cifar": Published(
        recipe=_densenet_cifar(),
        source="1608.06993, section 4.2; padded and mirrored as in 1512.03385",
        published="DenseNet-40-12: 5.24 % error on CIFAR-10+; BC-100-12: 4.51 %; BC-190-40: 3.46 %",
    ),
    "densenet_cifar_dropout": Published(
        recipe=_densenet_cifar(dropout=0.2, padding=0, flip=False),
        source="1608.06993, section 4.2: dropout where there is no augmentation",
        published="DenseNet-40-12: 7.00 % error on CIFAR-10; BC-100-12: 5.92 %",
    ),
    "densenet_imagenet": Published(
        recipe=_imagenet(model="densenet121", epochs=90, milestones=(30, 60)),
        source="1608.06993, section 4.2; without the colour augmentation of its reference 8",
        published="DenseNet-121: 25.02 % top-1 error on ImageNet; 169: 23.80 %; 201: 22.58 %",
    ),
    "bag_of_tricks": Published(
        recipe=_imagenet(
            model="resnet50d", epochs=200, batch_size=1024, warmup_epochs=5, label_smoothing=0.1, mixup=0.2
        ),
        source="1812.01187, sections 3.1, 5.1, 5.2 and 5.4, without distillation and colour augmentation",
        published="ResNet-50-D: 79.15 % top-1 accuracy on ImageNet without distillation",
    ),
    "strikes_back_a1": _strikes_back(
        recipe=dataclasses.replace(_strikes_back_a2, epochs=600, weight_decay=0.01, label_smoothing=0.1, mixup=0.2),
        published="ResNet-50: 80.4 % top-1 accuracy on ImageNet",
    ),
    "strikes_back_a2": _strikes_back(recipe=_strikes_back_a2, published="ResNet-50: 79.8 % top-1 accuracy on ImageNet"),
    "strikes_back_a3": _strikes_back(
        recipe=dataclasses.replace(
            _strikes_back_a2,
            epochs=100,
            learning_rate=8e-3,
            image_size=160,
            test_size=224,
            drop_path=0.0,
            rand_augment=6.0,
            repeats=1,
        ),
        published="ResNet-50: 78.1 % top-1 accuracy on ImageNet",
    ),
}


def get_recipe(name: str) -> Recipe:
    """Returns the recipe of a row.

    Raises:
        ValueError: If there is no such row.
    """
    return pick(RECIPES, name, "recipe").recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a training that are not part of its recipe.

    Attributes:
        seed: Seed of initial weights, order and augmentation.
        strategy: "auto", "none", "mirrored" or "multiworker", see `keras_resdense.strategy`.
        precision: "float32", "mixed_bfloat16" or "mixed_float16", which scales the loss; "auto" for the fastest on this
            machine, see `choose_precision`. A resumed run keeps the one that it began with.
        sync_batch_norm: Whether batch norm computes its statistics over all replicas together.
        steps_per_execution: Largest number of steps per call of the compiled function. The largest such number that
            divides an epoch is used.
        xla: Whether XLA compiles the training step.
        memory_efficient: Whether training recomputes feature maps instead of keeping them, see `ResNet` and
            `DenseStyle`.
        deterministic: Whether runs are bit-identical, at the cost of slower kernels.
        save_every: Steps between checkpoints, besides those after each epoch; 0 for none.
        data_dir: Folder where TFDS keeps its data sets; "" for TFDS's own.
        on_bad_image: "error" or "skip", see `load_data`.
        on_changed_data: "error" to stop if a folder of images has changed since the run began, "old_split" to resume
            with the images and the split that it began with.
        same_order: Whether batches hold the same images for any number of workers. Otherwise each worker reads its
            own share of the files of a large data set, if there are at least as many files as workers.
    """

    seed: int = 0
    strategy: str = "auto"
    precision: str = "float32"
    sync_batch_norm: bool = False
    steps_per_execution: int = 1
    xla: bool = False
    memory_efficient: bool = False
    deterministic: bool = False
    save_every: int = 0
    data_dir: str = ""
    on_bad_image: str = "error"
    on_changed_data: str = "error"
    same_order: bool = False

    def __post_init__(self) -> None:
        require_kinds(self)
        require_choice(self, "precision", ("auto", *PRECISIONS))
        named = f"one of {', '.join(PRECISIONS)} with xla, because steps are measured without it"
        require(self, "precision", self.precision != "auto" or not self.xla, named)
        require_choice(self, "on_bad_image", ("error", "skip"))
        require_choice(self, "on_changed_data", ("error", "old_split"))
        require_choice(self, "strategy", ("auto", "none", "mirrored", "multiworker"))
        require_whole(self, "steps_per_execution")
        require_whole(self, "save_every", "seed", least=0)


def describe(recipe: Recipe, settings: Settings) -> str:
    """Returns recipe and settings as JSON, which `read` parses."""
    return json.dumps({"recipe": dataclasses.asdict(recipe), "settings": dataclasses.asdict(settings)}, indent=2) + "\n"


def read(path: Path) -> tuple[Recipe, Settings]:
    """Reads recipe and settings from a run's `recipe.json`.

    Raises:
        ValueError: If the file is not a run's recipe.
    """
    try:
        described = json.loads(path.read_text())
        recipe = described["recipe"] | {"milestones": tuple(described["recipe"]["milestones"])}
        return Recipe(**recipe), Settings(**described["settings"])
    except (TypeError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the {RECIPE_FILE} of a run: {error}.") from error
