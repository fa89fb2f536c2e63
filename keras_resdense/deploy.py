"""From a run to one more format: `export` with the images that the run was trained and tested on."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_resdense import inference, pipeline, recipes
from keras_resdense.data import Examples, load_data
from keras_resdense.export import Export, Exporter, check_target, export, staged
from keras_resdense.model import ahead
from keras_resdense.recipes import RECIPE_FILE

#: What of a run's card goes where artefacts of it go, and under which name; a README.md may be there already.
CARD = {"README.md": "card.md", "curves.png": "curves.png", "confusion.png": "confusion.png"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Which images the exports of a run are made and measured with.

    Attributes:
        calibration: Data set or folder whose training images set the ranges of quantised activations, as
            `load_data` takes it; "" for what the run was trained on.
        calibration_images: How many of them.
        compared_images: How many of the run's images held out an export is compared on, at most.
        data_dir: Folder where TFDS keeps its data sets; "" for the run's.
    """

    calibration: str = ""
    calibration_images: int = 256
    compared_images: int = 1024
    data_dir: str = ""

    def __post_init__(self):
        for name in ("calibration_images", "compared_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


def export_run(
    run: Path,
    exporters: Sequence[Exporter],
    chosen: Images | None = None,
    folder: Path | None = None,
    overwrite: bool = False,
) -> list[Export]:
    """Exports the model of a run.

    Args:
        run: Its folder.
        exporters: Rows of `EXPORTERS`, or others made of them.
        chosen: Images to use; default `Images()`.
        folder: Where the artefacts are written, and the run's card beside them; default the run's.
        overwrite: Whether artefacts of the same names may be replaced.

    Returns:
        What was measured.

    Raises:
        ValueError: If there is no such run, or as `keras_resdense.export`.
    """
    chosen = chosen or Images()
    if not (run / RECIPE_FILE).is_file():
        raise ValueError(f"{run} is not the folder of a run: it holds no {RECIPE_FILE}.")
    paths = [(folder or run) / exporter.file_name for exporter in exporters]
    for path in paths:
        check_target(path, overwrite)
    model = inference.load_keras(run)
    recipe, settings = recipes.read(run / RECIPE_FILE)
    data_dir = chosen.data_dir or settings.data_dir or None
    data = load_data(recipe.data, data_dir, settings.on_bad_image)
    plan = pipeline.Plan(recipe=recipe, size=model.input_shape[1:3], classes=len(data.class_names))
    images, labels = draw(data.test, plan, chosen.compared_images)
    calibration = None
    if any(exporter.calibrated for exporter in exporters):
        source = load_data(chosen.calibration, data_dir, settings.on_bad_image) if chosen.calibration else data
        calibration, _ = draw(source.train, plan, chosen.calibration_images)
    exports = [
        export(
            model,
            path,
            exporter,
            images,
            labels,
            calibration=calibration,
            class_names=data.class_names,
            overwrite=overwrite,
        )
        for exporter, path in zip(exporters, paths, strict=True)
    ]
    if folder and folder.resolve() != run.resolve():
        _copy_card(run, folder)
    return exports


def draw(examples: Examples, plan: pipeline.Plan, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns some images `(images, height, width, channels)` of pixels 0–255 and their classes; always the same."""
    images, labels = [], []
    for handle in ahead(examples.order((0, 0)).take(count)):
        image, label, _ = examples.read(handle)
        images.append(pipeline.test_image(image, plan).numpy())
        labels.append(int(label))
    return np.stack(images), np.array(labels)


def _copy_card(run: Path, folder: Path) -> None:
    for name, target in CARD.items():
        if (run / name).is_file():
            with staged(folder / target) as temporary:
                shutil.copyfile(run / name, temporary)
