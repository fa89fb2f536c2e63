"""What quantisation costs trained networks: accuracy, agreement with float32 and noise by stage.

    keras-resdense train --recipe fast --data fashion_mnist --name resnet20
    python benchmarks/quantisation.py saved_models/resnet20 [more runs …] [--calibration-images 256]

Each run is exported in float32 and in the four quantised forms and measured on all its images held out. "stages"
are the signal-to-noise ratios, in decibels, at the end of each stage and at the output.
"""

import argparse
import dataclasses
import itertools
import math
import re
import tempfile
from pathlib import Path

from keras_resdense import runs
from keras_resdense.data.batches import take_images
from keras_resdense.data.plan import ExportImages, Plan
from keras_resdense.data.sources import load_data
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.exporting.quantisation import signal_to_noise
from keras_resdense.exporting.read import load_keras
from keras_resdense.training import recipes

FORMATS = ("tflite", "tflite_float16", "tflite_dynamic", "tflite_int8", "tflite_int16x8")
#: Formats whose files name operations as that of float32 does.
REPORTED = ("tflite_dynamic", "tflite_int8", "tflite_int16x8")
#: Images that noise is measured on.
IMAGES = 32


def stages(decibels: dict[str, float]) -> dict[str, float]:
    """Returns the ratio of the last operation of each stage, and of the last of all."""
    groups = itertools.groupby(decibels, lambda name: "".join(re.findall(r"stage\d+", name)[:1]))
    ends = {stage: decibels[list(names)[-1]] for stage, names in groups if stage}
    return ends | {"output": list(decibels.values())[-1]}


def measure(run: Path, calibration_images: int) -> None:
    recipe, _ = recipes.read(run / recipes.RECIPE_FILE)
    data = load_data(recipe.data)
    # Accuracy is what is asked for here: none is too low to be told.
    rows = [dataclasses.replace(EXPORTERS[name], tolerance=math.inf, threads=(2,)) for name in FORMATS]
    chosen = ExportImages(calibration_images=calibration_images, compared_images=data.test.count)
    with tempfile.TemporaryDirectory() as folder:
        exports = runs.export_run(run, rows, chosen, Path(folder))
        size = load_keras(run).input_shape[1:3]
        contract = Plan(recipe=recipe, size=size, classes=len(data.class_names)).contract(data.image_shape[2])
        images, _ = take_images(data.test, contract, IMAGES)
        print(f"\n{run.name}: {recipe.model}, {data.test.count:,} images, {calibration_images} for calibration\n")
        print("| format | accuracy | loss in points | agreement | MB | stages |\n|---|---:|---:|---:|---:|---|")
        for name, made in zip(FORMATS, exports, strict=True):
            ends = stages(signal_to_noise(made.path, exports[0].path, images)) if name in REPORTED else {}
            lost = 100 * (exports[0].accuracy - made.accuracy)
            print(
                f"| {name} | {made.accuracy:.2%} | {lost:.2f} | {made.agreement:.2%} | {made.size / 1e6:.2f} |"
                f" {', '.join(f'{stage} {ratio:.1f}' for stage, ratio in ends.items())} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--calibration-images", type=int, default=256, help="default %(default)s")
    options = parser.parse_args()
    for run in options.runs:
        measure(run, options.calibration_images)


if __name__ == "__main__":
    main()
