"""Uses trained models: predicts with, evaluates and exports a run's folder or a model of any format."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_resdense.data.batches import take_images
from keras_resdense.data.contract import LABELS_FILE, ImageContract
from keras_resdense.data.folder import image_files
from keras_resdense.data.plan import ExportImages, ImageRecipe, Plan
from keras_resdense.data.sources import load_data
from keras_resdense.data.stream import stream
from keras_resdense.data.transform import Transform
from keras_resdense.exporting.export import Export, check_replaceable, export
from keras_resdense.exporting.exporter import BATCH, Exporter
from keras_resdense.exporting.inference import InferenceModel
from keras_resdense.exporting.keras_file import in_keras
from keras_resdense.exporting.read import load_model, load_runner
from keras_resdense.files import staged
from keras_resdense.networks.zoo import VARIANTS, create_model
from keras_resdense.pretrained.catalogue import WeightSet, find_weights, set_of_file
from keras_resdense.progress import progress
from keras_resdense.training import recipes
from keras_resdense.training.card import write_card
from keras_resdense.training.evaluation import evaluate as measure
from keras_resdense.training.recipes import RECIPE_FILE, Recipe, Settings
from keras_resdense.training.report import RESULTS_FILE
from keras_resdense.training.run_folder import split_of


def transform(source: ImageContract | WeightSet | keras.Model | InferenceModel | str | Path) -> Transform:
    """Returns the function that turns images into a network's input, exactly as in its evaluation.

    Args:
        source: Source of the image contract: a model with an `image_contract` (built with published weights, or opened
            by `keras_resdense.load_model`, for any runtime), a published set of `list_weights`, a run's folder, an
            exported file, or a contract.

    Returns:
        A function from files, encoded bytes or arrays to a batch, see `keras_resdense.data.transform.Transform`.

    Raises:
        ValueError: If the source has no image contract.
    """
    if isinstance(source, ImageContract):
        return Transform(source)
    if isinstance(source, WeightSet):
        return Transform(source.contract())
    if isinstance(source, str | Path):
        source = load_runner(Path(source))
    if isinstance(source, InferenceModel):
        return Transform(_contract_of(source))
    contract = getattr(source, "image_contract", None)
    if contract is None:
        raise ValueError(
            f"{getattr(source, 'name', source)!r} carries no image contract: build it with published weights, or pass "
            "one, such as keras_resdense.ImageContract(size=(224, 224))."
        )
    return Transform(contract)


def predict(
    model: str | Path | InferenceModel,
    images: Sequence[str | Path],
    labels: Path | None = None,
    top: int = 5,
    on_bad_image: str = "error",
    after: str | Path | None = None,
    show_progress: bool = False,
    weights: str | None = None,
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Classifies images in batches, prepared as the model's image contract says.

    Files are read and decoded in parallel while the model computes. Memory holds a few batches, however many images
    there are.

    Args:
        model: Folder of a run, a file, what `keras_resdense.load_model` opened for a runtime or, with `weights`, the
            name of a variant.
        images: Files, or folders of files.
        labels: File of class names, one per line; default the names in the model's file, those in `labels.txt` beside
            it, or indices.
        top: Number of classes to return for each image.
        on_bad_image: "error" to stop at a file that is not an image, "skip" to report it on standard error.
        after: One of the files; only the files after it are classified.
        show_progress: Whether to show the progress on standard error.
        weights: Published weights of a variant, as in `create_model`.

    Yields:
        The path of each image, in the order of the files, and its most probable classes with their probabilities.

    Raises:
        ValueError: If a file is not an image, there are no images, or the names do not fit the model's classes.
    """
    if top < 1:
        raise ValueError(f"top is {top}; it must be at least 1.")
    if on_bad_image not in ("error", "skip"):
        raise ValueError(f"on_bad_image is {on_bad_image!r}; it must be 'error' or 'skip'.")
    run = model if isinstance(model, InferenceModel) else opened(model, weights)
    names = _class_names(run, labels)
    contract = _contract_of(run)
    files = [file for given in images for file in _files(given)]
    if not files:
        raise ValueError(f"There are no images in {', '.join(map(str, images))}.")
    files = files[_place_of(after, files) + 1 :] if after else files
    if not files:
        return
    told = progress("Predicting", len(files)) if show_progress else contextlib.nullcontext(lambda count: None)
    with told as advance:
        start = 0
        for batch, faults in stream(files, contract, min(BATCH, len(files))):
            part = files[start : start + len(faults)]
            start += len(faults)
            for file, fault in zip(part, faults, strict=True):
                if fault and on_bad_image == "error":
                    raise ValueError(f"{file}: {fault}")
                if fault:
                    print(f"Left out {file}: {fault}", file=sys.stderr)
            outputs = run(batch)
            if names and len(names) != outputs.shape[-1]:
                raise ValueError(
                    f"{labels or run.path} has {len(names)} names for {outputs.shape[-1]} classes of {run.path}."
                )
            for file, fault, probabilities in zip(part, faults, outputs, strict=True):
                if not fault:
                    best = np.argsort(-probabilities)[:top]
                    yield Path(file), [(names[n] if names else str(n), float(probabilities[n])) for n in best]
            advance(len(part))


def evaluate(
    model: str | Path,
    data: str | None = None,
    data_dir: str | None = None,
    on_bad_image: str | None = None,
    weights: str | None = None,
) -> dict[str, float]:
    """Measures a model on the held-out images of a data set.

    Args:
        model: A run's folder, a file, or with `weights` the name of a variant.
        data: Name or folder for `load_data`; default the data of its run.
        data_dir: Folder where TFDS keeps its data sets; default that of its run.
        on_bad_image: See `load_data`; default that of its run, or "error".
        weights: Published weights of a variant, as in `create_model`. On the data set they were published for, such
            as "imagenet2012", this verifies their accuracy.

    Returns:
        A dictionary with "accuracy", "loss" and "images", the number of images.

    Raises:
        ValueError: If there is neither `data` nor a run, or the data do not fit the model.
    """
    run = opened(model, weights)
    path = run.path
    recipe, settings = _described(path)
    if data is None and recipe is None:
        raise ValueError(f"{path} is not part of a run, which would name its data: add --data.")
    name = data or recipe.data
    own = recipe is not None and Path(name).resolve() == Path(recipe.data).resolve()
    # Images that the run was trained on must not be held out, even if images were added since.
    split = split_of(path.parent) if own else None
    loaded = load_data(name, data_dir or settings.data_dir or None, on_bad_image or settings.on_bad_image, split)
    classes = len(loaded.class_names)
    try:
        measured = measure(run, loaded.test, _contract_of(run), classes)
    except ValueError as error:
        raise ValueError(f"{path} and {name} do not fit: {error}") from error
    return {"accuracy": measured.accuracy, "loss": measured.loss, "images": loaded.test.count}


def opened(model: str | Path, weights: str | None = None, runtime: str | None = None) -> InferenceModel:
    """Opens a run or a file, or builds a variant with weights for the size that their accuracy was published for.

    Args:
        model: Folder of a run, a file or, with `weights`, the name of a variant.
        weights: Published weights of a variant, as in `create_model`.
        runtime: As in `keras_resdense.load_model`; None for the runtime of the file's format.

    Raises:
        ValueError: If the model or the weights are unknown, or as in `load_model`.
    """
    model = Path(model)
    if weights is None:
        if str(model).lower() in VARIANTS and not model.exists():
            raise ValueError(f"{model} is a variant without weights: name some, such as --weights imagenet.")
        return load_runner(model) if runtime is None else load_model(model, runtime=runtime)
    file = Path(weights)
    published = set_of_file(file) if file.is_file() else find_weights(str(model), weights)
    if published is None:
        raise ValueError(
            f"{weights} does not say how to prepare an image: name it like a published set, such as "
            "resnet18.a1_in1k.safetensors, or save the model in Python with an image_contract."
        )
    side = published.input_size
    network = create_model(str(model), weights=weights, input_shape=(side, side, 3))
    run = in_keras(network) if runtime is None else load_model(network, runtime=runtime)
    return dataclasses.replace(run, path=model)


def _described(path: Path | None) -> tuple[Recipe | None, Settings]:
    """Returns recipe and settings of the run that a file is part of, if any."""
    described = path.parent / RECIPE_FILE if path else None
    return recipes.read(described) if described and described.is_file() else (None, Settings())


def _contract_of(run: InferenceModel) -> ImageContract:
    """Returns the contract in a file or from its run's recipe. Without either, warns and squashes images."""
    if run.image_contract:
        return run.image_contract
    path = run.path or "The model"
    if [type(side) for side in run.input_shape] != [type(None), *[int] * 3]:
        raise ValueError(
            f"{path} takes inputs of shape {run.input_shape[1:]}, not images (height, width, channels) of one size."
        )
    _, height, width, channels = run.input_shape
    recipe, _ = _described(run.path)
    if recipe is None:
        print(
            f"{path} does not say how to prepare an image: it is squashed to {height} × {width} pixels, values 0–255.",
            file=sys.stderr,
        )
    return Plan(recipe=recipe or ImageRecipe(), size=(height, width), classes=1).contract(channels)


def _class_names(run: InferenceModel, labels: Path | None) -> Sequence[str] | None:
    if labels is None and run.class_names:
        return run.class_names
    beside = run.path.parent / LABELS_FILE if run.path else None
    labels = labels or (beside if beside and beside.is_file() else None)
    return labels.read_text(encoding="utf-8").splitlines() if labels else None


def _files(given: str | Path) -> list[str]:
    if os.path.isdir(given):
        return image_files(given)
    if not os.path.exists(given):
        raise ValueError(f"There is no {given}.")
    return [os.fspath(given)]


def _place_of(file: str | Path, files: list[str]) -> int:
    """Returns the index of a file that must occur exactly once in a list."""
    if files.count(os.fspath(file)) != 1:
        raise ValueError(
            f"{file} occurs {files.count(os.fspath(file))} times among the images, so the place to resume is unknown: "
            "pass the same images as before, each once."
        )
    return files.index(os.fspath(file))


#: Files of a run's card and their names in a folder of exports, which may have a README.md of its own.
CARD = {"README.md": "card.md", "curves.png": "curves.png", "confusion.png": "confusion.png"}


def export_run(
    run: Path,
    exporters: Sequence[Exporter],
    chosen: ExportImages | None = None,
    folder: Path | None = None,
    overwrite: bool = False,
    on_export: Callable[[Export], object] = lambda made: None,
) -> list[Export]:
    """Exports the model of a run.

    Args:
        run: Folder of the run.
        exporters: Rows of `EXPORTERS`, or modified ones.
        chosen: Images to use; default `ExportImages()`.
        folder: Folder for the artefacts and a copy of the card; default that of the run.
        overwrite: Whether artefacts of the same names and formats may be replaced.
        on_export: Function that is called with each artefact once it is written, because a later one may fail.

    Returns:
        The artefacts and their measurements.

    Raises:
        ValueError: If there is no such run, or as in `keras_resdense.export`.
    """
    chosen = chosen or ExportImages()
    if not (run / RECIPE_FILE).is_file():
        raise ValueError(f"{run} is not the folder of a run: it holds no {RECIPE_FILE}.")
    paths = [(folder or run) / exporter.file_name for exporter in exporters]
    for exporter, path in zip(exporters, paths, strict=True):
        exporter.check_packages()
        check_replaceable(exporter.target(path), exporter, overwrite)
    model = load_model(run, compile=False)
    recipe, settings = recipes.read(run / RECIPE_FILE)
    data_dir = chosen.data_dir or settings.data_dir or None
    data = load_data(recipe.data, data_dir, settings.on_bad_image, split_of(run))
    _, height, width, channels = model.input_shape
    if model.image_contract is None:
        plan = Plan(recipe=recipe, size=(height, width), classes=len(data.class_names))
        model.image_contract = plan.contract(channels)
    contract = model.image_contract
    images, labels = take_images(data.test, contract, chosen.compared_images)
    calibration = None
    if any(exporter.calibrated for exporter in exporters):
        source = load_data(chosen.calibration, data_dir, settings.on_bad_image) if chosen.calibration else data
        calibration, _ = take_images(source.train, contract, chosen.calibration_images)
    exports: list[Export] = []
    try:
        for exporter, path in zip(exporters, paths, strict=True):
            made = export(
                model,
                path,
                exporter,
                images,
                labels,
                calibration=calibration,
                class_names=data.class_names,
                overwrite=overwrite,
            )
            exports.append(made)
            on_export(made)
    finally:
        # If a format fails, the others are still in the card.
        if (run / RESULTS_FILE).is_file():
            write_card(run, json.loads((run / RESULTS_FILE).read_text()))
        if folder and folder.resolve() != run.resolve():
            _copy_card(run, folder)
    return exports


def _copy_card(run: Path, folder: Path) -> None:
    for name, target in CARD.items():
        if (run / name).is_file():
            with staged(folder / target) as temporary:
                shutil.copyfile(run / name, temporary)
