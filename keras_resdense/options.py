"""The options of the command line. Nothing here loads Keras or TensorFlow, so help is fast."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras_resdense
from keras_resdense import answers
from keras_resdense.data.plan import ExportImages, ImageRecipe
from keras_resdense.names import FORMATS
from keras_resdense.training.recipes import OptimisationRecipe, Recipe, Settings

Command = Callable[[argparse.Namespace], int | None]

_MODELS = "a run's folder, a .keras, a SavedModel, a .tflite or an .onnx file"
_WEIGHTS = "published weights, such as imagenet; the model must then be a variant's name"
_TRAIN_EXAMPLES = """examples:
  keras-resdense train
      ResNet-20 on the embedded digits
  keras-resdense train --recipe fast \\
      --model densenetbc100_12 --name my_densenet
      another network, with a recipe of the list
  keras-resdense train --recipe fine_tune --data photos/ \\
      --model resnet50 --weights imagenet
      your own images, one folder for each class
  keras-resdense train --name again \\
      --recipe saved_models/my_densenet/recipe.json
      a run, again
  keras-resdense train --recipe strikes_back_a3 \\
      --strategy multiworker --precision mixed_bfloat16
      on each of the machines that TF_CONFIG or SLURM name

The same command resumes an interrupted run."""
_EVALUATE_EXAMPLES = """examples:
  keras-resdense evaluate saved_models/resnet20_digits
  keras-resdense evaluate --data digits \\
      saved_models/resnet20_digits/model.tflite
  keras-resdense evaluate resnet50 --weights a1_in1k \\
      --data imagenet2012"""
_PREDICT_EXAMPLES = """examples:
  keras-resdense predict saved_models/pets cat.jpg photos/
  keras-resdense predict resnet50 --weights imagenet cat.jpg
  keras-resdense predict saved_models/pets/model.tflite \\
      cat.jpg --labels saved_models/pets/labels.txt
  keras-resdense predict saved_models/pets photos/ \\
      --format csv --output answers.csv"""
_PREPARE_EXAMPLES = """examples:
  keras-resdense prepare photos/ --to data/photos
  keras-resdense prepare photos/ --to data/photos \\
      --image-size 256 --beam=--runner=DirectRunner"""
_EXPORT_EXAMPLES = """examples:
  keras-resdense export saved_models/resnet20_digits \\
      --format onnx tflite_int8
  keras-resdense export saved_models/pets --uint8-pixels \\
      --format tflite_int8 --calibration photos/"""
_LIST_EXAMPLES = """examples:
  keras-resdense list 'resnet*d'
  keras-resdense list --recipes"""
_WEIGHTS_EXAMPLES = """examples:
  keras-resdense weights resnet50
  keras-resdense weights 'densenet*'"""
_SUMMARY_EXAMPLES = """examples:
  keras-resdense summary densenet121
  keras-resdense summary saved_models/resnet20_digits \\
      --blocks --csv blocks.csv
  keras-resdense summary resnet50 --picture resnet50.svg"""
_BENCHMARK_EXAMPLES = """examples:
  keras-resdense benchmark resnet20 --image-size 28
  keras-resdense benchmark resnet50 --batch-size 16 \\
      --precision mixed_bfloat16 --json resnet50.json"""
#: Placeholder of a value in the help, by its type.
_METAVARS = {int: "N", float: "X", str: "NAME", tuple: "X"}


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Returns the parser.

    Args:
        commands: The function that carries out each command.
    """
    parser = argparse.ArgumentParser("keras-resdense", description="Residual and dense networks for Keras 3.")
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {keras_resdense.__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, (description, examples, add_options) in _COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=description,
            description=f"{description[0].upper()}{description[1:]}.",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(command)
        command.add_argument("--debug", action="store_true", help="show TensorFlow's log and where an error comes from")
        command.set_defaults(run=commands[name])
    return parser


def overridden(row: Any, options: argparse.Namespace) -> Any:
    """Returns a row with the values that were given on the command line."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(row) if field.name in options}
    return dataclasses.replace(row, **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})


def field_texts(kind: type) -> dict[str, str]:
    """Returns the text of each field in the docstring of a dataclass."""
    _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    _, *parts = re.split(r"^ {4}(\w+): ", attributes, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _train(command: argparse.ArgumentParser) -> None:
    command.usage = "keras-resdense train [options]"
    default = "default digits, or chosen for a folder of images"
    command.add_argument("--recipe", help=f"a name or a run's recipe.json; {default}")
    command.add_argument("--folder", default="saved_models", help="where the run's folder is made; default %(default)s")
    command.add_argument("--name", help="name of the run's folder; default MODEL_DATA")
    _add_fields(command.add_argument_group("network and data (override the recipe's)"), Recipe)
    _add_fields(command.add_argument_group("images (override the recipe's)"), ImageRecipe)
    _add_fields(command.add_argument_group("optimisation (override the recipe's)"), OptimisationRecipe)
    _add_fields(command.add_argument_group("settings of the training"), Settings)


def _evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help=_MODELS)
    command.add_argument("--weights", metavar="SET", help=_WEIGHTS)
    command.add_argument("--data", metavar="NAME", help="a data set or a folder; default what the run was trained on")
    command.add_argument("--data-dir", metavar="FOLDER", help="where TFDS keeps its data sets; default the run's")
    command.add_argument("--on-bad-image", metavar="NAME", help="error or skip; default the run's")


def _predict(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help=_MODELS)
    command.add_argument("--weights", metavar="SET", help=_WEIGHTS)
    command.add_argument("images", type=Path, nargs="+", help="files, or folders of them")
    command.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names, one per line; default labels.txt beside the model"
    )
    runtimes = "auto for the fastest installed, or openvino, onnxruntime, tensorflow, litert; default the file's own"
    command.add_argument("--runtime", metavar="NAME", help=runtimes)
    formats = f"{', '.join(answers.FORMATS)}; default %(default)s"
    command.add_argument("--format", choices=answers.FORMATS, metavar="FORMAT", default="text", help=formats)
    command.add_argument("--top", type=int, metavar="N", default=5, help="classes to name; default %(default)s")
    bad = "error to stop at a file that is not an image, skip to report it and continue; default %(default)s"
    command.add_argument("--on-bad-image", choices=("error", "skip"), metavar="WHAT", default="error", help=bad)
    command.add_argument("--output", type=Path, metavar="FILE", help="file for the answers; default the terminal")
    command.add_argument("--resume", action="store_true", help="resume the file of --output (csv and jsonl)")


def _prepare(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="images, one folder for each class")
    command.add_argument("--to", type=Path, metavar="FOLDER", required=True, help="folder of the new data set")
    command.add_argument(
        "--image-size", type=int, metavar="N", default=0, help="shrink larger images to this shorter side, in pixels"
    )
    bad = "error to list all bad images and stop, or skip; default %(default)s"
    command.add_argument("--on-bad-image", choices=("error", "skip"), metavar="WHAT", default="error", help=bad)
    command.add_argument(
        "--beam", metavar="OPTIONS", help='options of Apache Beam: --beam="--runner=…"; default no Beam'
    )


def _export(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, metavar="run", help="a run's folder")
    command.add_argument(
        "--format", nargs="+", required=True, choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS)
    )
    command.add_argument("--folder", type=Path, help="where the files go; default the run's folder")
    command.add_argument("--overwrite", action="store_true", help="replace files of the same names")
    command.add_argument(
        "--report", action="store_true", help="report what CPU and GPU run of each .tflite, its memory and MACs"
    )
    # An option that is not given is left out of the result, so that the format's own value applies.
    rows = functools.partial(command.add_argument, default=argparse.SUPPRESS)
    constant = {"action": "store_const", "dest": "pixels"}
    rows(
        "--any-batch",
        action="store_const",
        dest="batch",
        const=None,
        help="TFLite: take any number of images, not one",
    )
    rows("--uint8-pixels", **constant, const="uint8", help="TFLite: take uint8 pixels, as from a camera")
    rows("--int8-pixels", **constant, const="int8", help="tflite_int8: int8 input and output, not uint8")
    rows(
        "--learn-last-stage",
        action="store_const",
        dest="learns",
        const="last_stage",
        help="tflite_trainable: the last stage learns, too, not only the head",
    )
    rows("--license", metavar="NAME", help="TFLite: the model's licence, such as Apache-2.0")
    rows("--opset", type=int, metavar="N", help="ONNX: version of the operators")
    rows(
        "--serving-version",
        dest="version",
        type=int,
        metavar="N",
        help="SavedModel: write to a subfolder of this number",
    )
    _add_fields(command, ExportImages)


def _list(command: argparse.ArgumentParser) -> None:
    command.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*d'; default all")
    command.add_argument("--recipes", action="store_true", help="list recipes with their results and sources")


def _weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("pattern", nargs="?", default="*", help="variants, such as 'resnet*d'; default all")


def _summary(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="name of a variant, a run's folder or a .keras file")
    finer = command.add_mutually_exclusive_group()
    finer.add_argument("--blocks", dest="per", action="store_const", const="block", help="a row for each block")
    finer.add_argument("--layers", dest="per", action="store_const", const="layer", help="Keras's own summary")
    command.add_argument(
        "--csv", type=Path, metavar="FILE", help="write the rows to a file; with --layers one for each layer"
    )
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw the network to a file, .svg or .png")


def _benchmark(command: argparse.ArgumentParser) -> None:
    command.add_argument("variant", help="name of the variant")
    command.add_argument("--image-size", type=int, metavar="N", help="side in pixels; default the published size")
    command.add_argument(
        "--batch-size", type=int, metavar="N", default=32, help="images in a batch; default %(default)s"
    )
    command.add_argument("--steps", type=int, metavar="N", default=10, help="steps to time; default %(default)s")
    command.add_argument(
        "--precision",
        metavar="NAME",
        default="float32",
        help="or mixed_bfloat16, mixed_float16; default %(default)s",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to a file")


#: The description of each command, its examples, and the function that adds its options.
_COMMANDS = {
    "train": ("train on images, evaluate, save and export", _TRAIN_EXAMPLES, _train),
    "evaluate": ("measure a model on held-out images", _EVALUATE_EXAMPLES, _evaluate),
    "predict": ("classify images", _PREDICT_EXAMPLES, _predict),
    "prepare": ("write a folder of images as a data set", _PREPARE_EXAMPLES, _prepare),
    "export": ("write a run's model in more formats", _EXPORT_EXAMPLES, _export),
    "list": ("list variants or recipes", _LIST_EXAMPLES, _list),
    "weights": ("list published weights, the most accurate first", _WEIGHTS_EXAMPLES, _weights),
    "summary": ("show cost and receptive field of a network's stages", _SUMMARY_EXAMPLES, _summary),
    "benchmark": ("time the training and inference of a variant", _BENCHMARK_EXAMPLES, _benchmark),
}


def _add_fields(parser: Any, kind: type) -> None:
    """Adds an option for each field. An option that is not given is left out of the result."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, text in field_texts(kind).items():
        flag, default = _flag(name), fields[name].default
        # Names of other fields are replaced by those of their options.
        said = re.sub(r"`(\w+)`", lambda found: _flag(found[1]) if found[1] in fields else found[1], text)
        said = said.replace("`", "").replace("%", "%%")
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=said)
            continue
        values = {"type": float, "nargs": "*"} if isinstance(default, tuple) else {"type": type(default)}
        metavar = _METAVARS[type(default)]
        parser.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=said, **values)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
