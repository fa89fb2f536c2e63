"""All variants by name, and the function that builds them.

`create_model` takes the arguments of keras.applications with the same meanings and defaults, except
`weights=None`: nothing is downloaded unless you ask for it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import keras

from keras_resdense.checks import pick, whole
from keras_resdense.data.contract import ImageContract
from keras_resdense.networks import densenet, layers, resnet, resnet_v2
from keras_resdense.networks.model import Model
from keras_resdense.pretrained.catalogue import WeightSet, find_weights, set_of_file
from keras_resdense.pretrained.downloads import download, origin_of
from keras_resdense.pretrained.preprocessing import PREPROCESSINGS, add_preprocessing, imagenet_classes
from keras_resdense.pretrained.weights import checked, load_checked

_KNOBS_BESIDE_WEIGHTS = (
    "output_stride",
    "weight_decay",
    "drop_path",
    "dropout",
    "head_dropout",
    "batch_norm_momentum",
    "zero_init_last_gamma",
    "memory_efficient",
)

#: Every variant: its name and its row. Change one with `dataclasses.replace(row, field=…)`.
VARIANTS: dict[str, layers.Network] = resnet.RESNETS | resnet_v2.RESNETS_V2 | densenet.DENSENETS

#: Other packages' names of variants. keras.applications is left out, because most packages use its names for other
#: networks: its `resnet50` is `resnet50v1` here, and its `resnet50v2` is `resnet50v2_keras`.
ALIASES = {
    "wide_resnet50_2": "wideresnet50_2",
    "wide_resnet101_2": "wideresnet101_2",
    **{f"resnetv2_{depth}": f"resnet{depth}v2" for depth in (18, 34, 50, 101, 152)},
}
#: Arguments of timm's and torchvision's functions, and what to pass here.
PEERS_ARGUMENTS = {
    "pretrained": 'pass weights="imagenet", or the name of a set that list_weights(variant) lists',
    "num_classes": "pass classes=…, or include_top=False for no classifier",
    "in_chans": "pass input_shape=(height, width, channels)",
    "features_only": "pass the model to keras_resdense.feature_extractor",
    "out_indices": "pass levels such as ('P3', 'P5') to keras_resdense.feature_extractor",
    "global_pool": "pass include_top=False and pooling='avg' or 'max'",
    "drop_rate": "build a row: dataclasses.replace(keras_resdense.VARIANTS[variant], head_dropout=…)",
    "drop_path_rate": "build a row: dataclasses.replace(keras_resdense.VARIANTS[variant], drop_path=…)",
    "output_stride": "build a row: dataclasses.replace(keras_resdense.VARIANTS[variant], output_stride=…)",
    "zero_init_residual": "build a row: dataclasses.replace(…, zero_init_last_gamma=True)",
    "progress": "downloads always show their progress",
}


def list_models(pattern: str = "*") -> list[str]:
    """Lists the names of variants that match a shell pattern such as `"resnet*d"`, ignoring case."""
    return fnmatch.filter(VARIANTS, pattern.lower())


def get_row(name: str) -> layers.Network:
    """Returns the row of a variant.

    Args:
        name: Name of a variant, in any case, or another package's name of it, see `ALIASES`.

    Raises:
        ValueError: If there is no such variant.
    """
    name, separator, tag = str(name).partition(".")
    name = ALIASES.get(name.lower(), name)
    if separator:
        raise ValueError(f"Pass timm's {name}.{tag} as the variant {name!r} with weights={tag!r}.")
    return pick(VARIANTS, name, "variant", "keras_resdense.list_models() names all.")


Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def _explaining(create: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Adds errors for arguments of other packages' functions that say what to pass instead."""

    @functools.wraps(create)
    def explained(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        for name in kwargs.keys() & PEERS_ARGUMENTS.keys():
            raise TypeError(f"{name!r} is an argument of timm and torchvision. Here, {PEERS_ARGUMENTS[name]}.")
        return create(*args, **kwargs)

    return explained


@_explaining
def create_model(
    variant: str | layers.Network,
    include_top: bool = True,
    weights: str | Path | None = None,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    pooling: Literal["avg", "max"] | None = None,
    classes: int | None = None,
    classifier_activation: str | Callable | None = "softmax",
    name: str | None = None,
    layer_prefix: str = "",
    include_preprocessing: bool | str = False,
) -> keras.Model:
    """Builds a network.

    Args:
        variant: Name of a variant, or a row: one of `VARIANTS` changed by `dataclasses.replace`.
        include_top: Whether to add global average pooling and the classifier.
        weights: None for random weights; "imagenet" for the most accurate published set whose licence allows
            free use; the name of a published set, see `list_weights`; or a path, see `weights.load`. Add
            `"#sha256=…"` to either to check the file.
        input_tensor: Keras tensor `(batch, height, width, channels)` to build on, such as the output of
            preprocessing layers.
        input_shape: `(height, width, channels)`. Height and width may be None. Default: the size the
            variant was published for with `include_top`, else `(None, None, 3)`.
        pooling: Without the top: None for the last feature map `(batch, height, width, channels)`;
            "avg" or "max" for `(batch, channels)`.
        classes: Number of outputs of the classifier. Default: as many as the variant's data set has classes.
        classifier_activation: Activation of the classifier; None for logits.
        name: Name of the model; default the variant's.
        layer_prefix: Put before the name of every layer, so that two models can be joined in one.
        include_preprocessing: Whether the model takes pixels 0–255 in RGB and normalises them itself. True takes
            the preprocessing of the published set, or "torch" with random weights. A file of weights whose set is
            not known from its name needs the name of a preprocessing: "torch", "half", "tf" or "caffe".

    Returns:
        An uncompiled functional model. With published weights it has an `image_contract`, see
        `keras_resdense.transform`, and `class_names` if its classifier is the published one.

    Raises:
        ValueError: If an argument is not allowed. Nothing was built then.
    """
    variant = ALIASES.get(variant.lower(), variant) if isinstance(variant, str) else variant
    row = get_row(variant) if isinstance(variant, str) else variant
    if not isinstance(row, layers.Network):
        raise ValueError(f"variant is {variant!r}; it must be a name or a row of keras_resdense.VARIANTS.")
    if name is None:
        name = variant.lower() if isinstance(variant, str) else type(row).__name__.lower()
    outputs = whole(row.stem.classes if classes is None else classes)
    if outputs is None:
        raise ValueError(f"classes is {classes!r}; it must be a whole number of at least 1.")
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"pooling is {pooling!r}; it must be None, 'avg' or 'max'.")
    activation = keras.activations.get(classifier_activation)
    if input_shape is None:
        side = row.stem.image_size if include_top else None
        input_shape = (side, side, 3) if input_tensor is None else tuple(input_tensor.shape[1:])
    file, sha256, published = _find_weights(variant, weights, include_top)
    preprocessing = _preprocessing_of(include_preprocessing, file, published)
    images = x = _images(input_tensor, input_shape, row, layer_prefix)

    if preprocessing:
        x = add_preprocessing(x, preprocessing, layer_prefix)
    x = row.body(x, layer_prefix)
    if include_top:
        x = layers.add_head(x, outputs, activation, row, layer_prefix)
    elif pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(name=f"{layer_prefix}avg_pool")(x)
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling2D(name=f"{layer_prefix}max_pool")(x)
    sources = keras.utils.get_source_inputs(images)
    inputs = sources[0] if len(sources) == 1 else sources
    model = Model(inputs, x, name=name)
    model.recomputes_blocks = isinstance(row, resnet.ResNet) and row.memory_efficient
    if file:
        load_checked(model, file, layer_prefix)
        model.weights_origin = origin_of(file, sha256)
    if published and input_tensor is None and input_shape[2] in (1, 3):
        size = None if None in input_shape[:2] else tuple(input_shape[:2])
        contract = published.contract(size, input_shape[2])
        # A model that normalises by itself takes pixels.
        pixels = ImageContract(size=contract.size, channels=contract.channels)
        taken = {name: getattr(pixels, name) for name in ("order", "mean", "std")} if preprocessing else {}
        model.image_contract = dataclasses.replace(contract, **taken)
        if include_top and outputs == len(imagenet_classes()):
            model.class_names = tuple(name for _, name in imagenet_classes())
    return model


def _find_weights(variant, weights: str | Path | None, include_top: bool) -> tuple[Path | None, str, WeightSet | None]:
    """Returns the file to load, downloaded if necessary, its SHA-256, and the published set that it is, if known."""
    if weights is None:
        return None, "", None
    name, separator, digest = str(weights).partition("#")
    if Path(name).is_file():
        published = set_of_file(Path(name))
    else:
        published = find_weights(variant if isinstance(variant, str) else _variant_of(variant), name)
        weights = f"{download(published, include_top)}{separator}{digest}"
    path, sha256 = checked(weights)
    if published and Path(name).is_file():
        print(f"{path} looks like {published.publisher}'s {published.variant} {published.name}, by its name.")
    return path, sha256, published


def _preprocessing_of(wanted: bool | str, file: Path | None, published: WeightSet | None) -> str | None:
    """Returns the name of the preprocessing to add to the model, if any."""
    if isinstance(wanted, str):
        pick(PREPROCESSINGS, wanted, "preprocessing")
        return wanted
    if wanted and file and not published:
        raise ValueError(
            f"include_preprocessing is True, but neither {file}'s name nor its folder's says which published set it "
            f"is: name its preprocessing, include_preprocessing='torch' or another of {', '.join(PREPROCESSINGS)}."
        )
    return (published.preprocessing if published else "torch") if wanted else None


def _variant_of(row: layers.Network) -> str:
    """Returns the variant that a row differs from only in fields that do not affect the weights."""
    for name, published in VARIANTS.items():
        if isinstance(row, type(published)):
            same = {knob: getattr(published, knob) for knob in _KNOBS_BESIDE_WEIGHTS if hasattr(published, knob)}
            if dataclasses.replace(row, **same) == published:
                return name
    raise ValueError(
        "No published weights fit this row: it differs from every row of VARIANTS in fields that affect the weights."
    )


def _images(input_tensor, input_shape, row: layers.Network, prefix: str):
    """Returns the Keras tensor of the images, after checking that its shape fits the row."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras_resdense builds (batch, height, width, channels); "
            "call keras.config.set_image_data_format('channels_last') first."
        )
    least = row.stem.smallest_size
    shape = _shape(input_shape, least)
    if shape is None:
        raise ValueError(
            f"The input's shape is {input_shape!r}; it must be (height, width, channels) with height and width None "
            f"or at least {least} pixels, and at least one channel."
        )
    if input_tensor is None:
        return keras.Input(shape, name=f"{prefix}images")
    if tuple(input_tensor.shape[1:]) != shape:
        raise ValueError(f"input_tensor has shape {tuple(input_tensor.shape)}, input_shape is {shape}: leave one out.")
    return input_tensor if keras.utils.is_keras_tensor(input_tensor) else keras.Input(tensor=input_tensor)


def _shape(shape, least: int) -> tuple[int | None, int | None, int] | None:
    """Returns `(height, width, channels)` as Python integers, or None if the shape is not that of images."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 3:
        return None
    sizes = [whole(size, bound) for size, bound in zip(shape, (least, least, 1), strict=True)]
    missing = [index for index, size in enumerate(sizes) if size is None]
    return tuple(sizes) if all(index < 2 and shape[index] is None for index in missing) else None
