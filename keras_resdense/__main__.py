"""The command line: `keras-resdense`, or `python -m keras_resdense`."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
import time
from pathlib import Path

from keras_resdense import runs
from keras_resdense.exporting.export import format_table
from keras_resdense.exporting.formats import EXPORTERS, TFLite
from keras_resdense.exporting.read import load_keras
from keras_resdense.files import staged
from keras_resdense.insight import benchmark
from keras_resdense.insight.analysis import format_parts, summarise, write_parts
from keras_resdense.insight.drawing import check_suffix, draw_network, save_figure
from keras_resdense.networks import zoo
from keras_resdense.training import recipes, train, workers
from keras_resdense.training.keeper import Interrupted
from keras_resdense.training.recipes import Recipe, Settings

#: What a process returns that was asked to terminate: 128 and the number of SIGTERM.
INTERRUPTED = 143
#: What it returns after Ctrl-C: 128 and the number of SIGINT.
STOPPED = 130

_MODELS = "a run's folder, a .keras, a SavedModel, a .tflite or an .onnx"
_TRAIN_EXAMPLES = """examples:
  keras-resdense train
      ResNet-20 on the embedded digits
  keras-resdense train --recipe fast --model densenetbc100_12 --name my_densenet
      another network, with a recipe of the list
  keras-resdense train --data photos/ --model resnet50 --recipe fine_tune --weights resnet50.keras
      your own images, one folder for each class
  keras-resdense train --recipe saved_models/my_densenet/recipe.json --name again
      a run, again
  keras-resdense train --recipe strikes_back_a3 --strategy multiworker --precision mixed_bfloat16
      on each of the machines that TF_CONFIG or SLURM name

The same command given again after a crash goes on from the last checkpoint."""
_EVALUATE_EXAMPLES = """examples:
  keras-resdense evaluate saved_models/resnet20_digits
  keras-resdense evaluate saved_models/resnet20_digits/model.tflite --data digits"""
_PREDICT_EXAMPLES = """examples:
  keras-resdense predict saved_models/pets cat.jpg photos/
  keras-resdense predict saved_models/pets/model.tflite cat.jpg --labels saved_models/pets/labels.txt
  keras-resdense predict saved_models/pets photos/ --format csv > answers.csv"""
_EXPORT_EXAMPLES = """examples:
  keras-resdense export saved_models/resnet20_digits --format onnx tflite_int8
  keras-resdense export saved_models/pets --format tflite_int8 --uint8-pixels --calibration photos/"""
_LIST_EXAMPLES = """examples:
  keras-resdense list 'resnet*d'
  keras-resdense list --recipes"""
_SUMMARY_EXAMPLES = """examples:
  keras-resdense summary densenet121
  keras-resdense summary saved_models/resnet20_digits --blocks --csv blocks.csv
  keras-resdense summary resnet50 --picture resnet50.svg"""
_BENCHMARK_EXAMPLES = """examples:
  keras-resdense benchmark resnet20 --image-size 28 --batch-size 128
  keras-resdense benchmark resnet50 --batch-size 16 --precision mixed_bfloat16 --json resnet50.json"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 1 with a message where something went wrong, 130 or 143 if stopped."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except Interrupted as stop:
        print(f"\nkeras-resdense: {stop}", file=sys.stderr)
        return INTERRUPTED
    except workers.WorkerLost as lost:
        print(f"\nkeras-resdense: {lost} Starting again, to wait for it.", file=sys.stderr)
        workers.start_again()
    except KeyboardInterrupt:
        print("\nkeras-resdense: stopped by the keyboard", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if options.debug:
            raise
        print(f"\nkeras-resdense: {_explain(error)}", file=sys.stderr)
        return 1
    return 0


def _explain(error: Exception) -> str:
    """Says in words what went wrong; whatever nobody foresaw keeps its name."""
    if isinstance(error, (ValueError, RuntimeError, OSError, FloatingPointError)):
        return str(error)
    if type(error).__name__ == "ResourceExhaustedError" and "OOM" in str(error):
        return "Out of memory: try a smaller --batch-size, or --accumulation 4. The last checkpoint is good."
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("keras-resdense", description="Residual and dense networks for Keras 3.")
    commands = parser.add_subparsers(title="commands", required=True)

    train = _command(commands, "train", "train on images, evaluate, save and export", _train, _TRAIN_EXAMPLES)
    train.add_argument("--recipe", default="digits", help="a name or a run's recipe.json; default %(default)s")
    train.add_argument("--folder", default="saved_models", help="where the run's folder is made; default %(default)s")
    train.add_argument("--name", help="of the run; default MODEL_DATA")
    for kind in (Recipe, Settings):
        group = train.add_argument_group(f"in place of the recipe's (see keras_resdense.{kind.__name__})")
        for field in dataclasses.fields(kind):
            _add_field(group, field)

    evaluate = _command(commands, "evaluate", "measure a model on the images held out", _evaluate, _EVALUATE_EXAMPLES)
    evaluate.add_argument("model", type=Path, help=_MODELS)
    evaluate.add_argument("--data", help="default: what the run was trained on")
    evaluate.add_argument("--data-dir", help="folder where TFDS keeps its data sets; default the run's")
    evaluate.add_argument("--on-bad-image", help="error, to list them all and stop, or skip; default the run's")

    predict = _command(commands, "predict", "classify images", _predict, _PREDICT_EXAMPLES)
    predict.add_argument("model", type=Path, help=_MODELS)
    predict.add_argument("images", type=Path, nargs="+", help="files, or folders of them")
    predict.add_argument("--labels", type=Path, help="file of class names, one a line; default labels.txt beside it")
    predict.add_argument("--format", choices=("text", "csv", "json"), default="text", help="default %(default)s")
    predict.add_argument("--top", type=int, default=5, help="classes to name; default %(default)s")

    export = _command(commands, "export", "write a run's model in more formats", _export, _EXPORT_EXAMPLES)
    export.add_argument("model", type=Path, metavar="run", help="a run's folder")
    formats = {"choices": EXPORTERS, "help": ", ".join(EXPORTERS), "metavar": "FORMAT"}
    export.add_argument("--format", nargs="+", required=True, **formats)
    export.add_argument("--folder", type=Path, help="where the files go; default the run's folder")
    export.add_argument("--overwrite", action="store_true", help="replace files of the same names")
    export.add_argument("--any-batch", action="store_true", help="of TFLite: any number of images at once, not one")
    export.add_argument("--uint8-pixels", action="store_true", help="of TFLite: bytes in, as cameras give them")
    for field in dataclasses.fields(runs.Images):
        _add_field(export, field)

    names = _command(commands, "list", "list variants or recipes", _list, _LIST_EXAMPLES)
    names.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*d'; default all")
    names.add_argument("--recipes", action="store_true", help="list recipes, what they reached and where they are from")

    about = "say what each stage of a variant or a model costs and sees, and draw it"
    summary = _command(commands, "summary", about, _summary, _SUMMARY_EXAMPLES)
    summary.add_argument("model", help="name of a variant, a run's folder or a .keras")
    finer = summary.add_mutually_exclusive_group()
    finer.add_argument("--blocks", dest="per", action="store_const", const="block", help="a row for each block")
    finer.add_argument("--layers", dest="per", action="store_const", const="layer", help="Keras's own summary")
    summary.add_argument("--csv", type=Path, help="file to write the rows to; with --layers one for each layer")
    summary.add_argument("--picture", type=Path, help="file to draw the network to, .svg or .png")

    speed = "time the training and inference of a variant"
    timed = _command(commands, "benchmark", speed, _benchmark, _BENCHMARK_EXAMPLES)
    timed.add_argument("variant", help="its name")
    timed.add_argument("--image-size", type=int, help="side in pixels; default what it was published for")
    timed.add_argument("--batch-size", type=int, default=32, help="images at once; default %(default)s")
    timed.add_argument("--steps", type=int, default=10, help="to time of each; default %(default)s")
    timed.add_argument("--precision", default="float32", help="or mixed_bfloat16, mixed_float16; default %(default)s")
    timed.add_argument("--json", type=Path, help="file to write all of it to")
    return parser


def _command(commands, name: str, description: str, run, examples: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=description,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--debug", action="store_true", help="show where an error comes from")
    command.set_defaults(run=run)
    return command


def _add_field(parser, field: dataclasses.Field) -> None:
    """Adds an option whose absence leaves no trace, so that the recipe's own value stands."""
    flag, default = "--" + field.name.replace("_", "-"), argparse.SUPPRESS
    if isinstance(field.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
    elif isinstance(field.default, tuple):
        parser.add_argument(flag, type=float, nargs="*", default=default)
    else:
        parser.add_argument(flag, type=type(field.default), default=default)


def _train(options: argparse.Namespace) -> None:
    path = Path(options.recipe)
    recipe, settings = recipes.read(path) if path.is_file() else (recipes.get_recipe(options.recipe), Settings())
    recipe, settings = (_overridden(row, options) for row in (recipe, settings))
    start = time.perf_counter()
    run = train.train(recipe, settings, folder=options.folder, name=options.name)
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    print(f"\n{run.accuracy:.2%} of the held-out images right, after {minutes} min {seconds} s. In {run.folder}/:")
    print(format_table(run.exports))


def _overridden(row, options: argparse.Namespace):
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(row) if field.name in options}
    return dataclasses.replace(row, **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})


def _evaluate(options: argparse.Namespace) -> None:
    measured = runs.evaluate(options.model, options.data, options.data_dir, options.on_bad_image)
    print(f"{measured['accuracy']:.2%} of {measured['images']:,} held-out images right; loss {measured['loss']:.4f}")


def _predict(options: argparse.Namespace) -> None:
    answers = runs.predict(options.model, options.images, options.labels, options.top)
    if options.format == "json":
        json.dump([{"image": str(path), "classes": dict(best)} for path, best in answers], sys.stdout, indent=2)
        print()
    elif options.format == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(["image", "rank", "class", "probability"])
        for path, best in answers:
            writer.writerows([path, rank, name, f"{share:.6f}"] for rank, (name, share) in enumerate(best, start=1))
    else:
        for path, best in answers:
            print(path, *(f"  {share:7.2%}  {name}" for name, share in best), sep="\n")


def _export(options: argparse.Namespace) -> None:
    changes = {"batch": None} if options.any_batch else {}
    changes |= {"pixels": "uint8"} if options.uint8_pixels else {}
    rows = [EXPORTERS[name] for name in options.format]
    rows = [dataclasses.replace(row, **changes) if isinstance(row, TFLite) else row for row in rows]
    chosen = _overridden(runs.Images(), options)
    print(format_table(runs.export_run(options.model, rows, chosen, options.folder, options.overwrite)))


def _list(options: argparse.Namespace) -> None:
    if options.recipes:
        for name, row in recipes.RECIPES.items():
            print(f"{name}\n  published  {row.published}\n  measured   {row.measured}\n  source     {row.source}")
        return
    names = zoo.list_models(options.pattern)
    if not names:
        raise ValueError(f"No variant matches {options.pattern!r}; 'keras-resdense list' names all.")
    print("\n".join(names))


def _summary(options: argparse.Namespace) -> None:
    if options.picture:
        check_suffix(options.picture)
    path, per = Path(options.model), options.per or "stage"
    model = load_keras(path) if path.exists() else zoo.create_model(options.model)
    parts = summarise(model, per) if per != "layer" or options.csv else []
    if per == "layer":
        model.summary(line_length=120)
    else:
        print(format_parts(parts))
    if options.csv:
        write_parts(parts, options.csv)
    if options.picture:
        save_figure(draw_network(model), options.picture)


def _benchmark(options: argparse.Namespace) -> None:
    measured = benchmark.benchmark(
        options.variant,
        image_size=options.image_size,
        batch_size=options.batch_size,
        steps=options.steps,
        precision=options.precision,
    )
    print(measured)
    if options.json:
        with staged(options.json) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(measured), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
