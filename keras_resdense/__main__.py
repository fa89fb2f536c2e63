"""The command line: `keras-resdense`, or `python -m keras_resdense`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from keras_resdense import answers, terminal
from keras_resdense.data.plan import ExportImages
from keras_resdense.names import BUILDERS
from keras_resdense.options import make_parser, overridden
from keras_resdense.training import recipes, workers
from keras_resdense.training.recipes import Recipe, Settings

if TYPE_CHECKING:
    from keras_resdense.data.examples import ImageData

#: Exit code after SIGTERM: 128 plus its number.
INTERRUPTED = 143
#: Exit code after Ctrl-C: 128 plus the number of SIGINT.
STOPPED = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Arguments of the command; default those of this process. Only then, and without `--debug`,
            TensorFlow's routine messages are held back.

    Returns:
        The exit code: 0, 1 after an error, 130 after Ctrl-C or 143 after SIGTERM.
    """
    parser = make_parser(COMMANDS)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        folder = next((word for word in unknown if options.command == "train" and Path(word).is_dir()), None)
        meant = f". To train on a folder of images, write --data {shlex.quote(folder)}" if folder else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
    held_back = arguments is None and not options.debug
    if held_back:
        warnings.formatwarning = terminal.format_warning
    try:
        with terminal.native_log_held_back() if held_back else contextlib.nullcontext():
            return options.run(options) or 0
    except workers.WorkerLost as lost:
        print(f"\nkeras-resdense: {lost} Restarting, to wait for it.", file=sys.stderr)
        workers.start_again()
    except KeyboardInterrupt:
        resumes = " The same command resumes the run." if options.command == "train" else ""
        print(f"\nkeras-resdense: stopped by the keyboard.{resumes}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if options.debug:
            raise
        print(f"\nkeras-resdense: {_explain(error)}", file=sys.stderr)
    return 1


def _explain(error: Exception) -> str:
    """Returns the message of an error. Unexpected kinds of errors keep their names."""
    if isinstance(error, (ValueError, RuntimeError, OSError, FloatingPointError)):
        return str(error)
    if type(error).__name__ == "ResourceExhaustedError" and "OOM" in str(error):
        return "Out of memory: try a smaller --batch-size, or --accumulation 4. The last checkpoint is intact."
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _recipe(options: argparse.Namespace) -> tuple[Recipe, Settings, ImageData | None]:
    """Returns the recipe of the options or, for a folder of images without a recipe, a chosen one."""
    path = Path(options.recipe or "")
    if options.recipe and path.is_file():
        recipe, settings = recipes.read(path)
    else:
        recipe, settings = recipes.get_recipe(options.recipe or "digits"), Settings()
    settings, data = overridden(settings, options), None
    # The name of the embedded data set means no folder.
    named = not options.recipe and "data" in options and options.data != recipe.data
    if named and Path(options.data).is_dir():
        from keras_resdense.data.sources import load_data
        from keras_resdense.training.choosing import choose, explain

        data = load_data(options.data, settings.data_dir or None, settings.on_bad_image)
        recipe, found = choose(data, getattr(options, "weights", ""))
        print(f"{found}\n{explain(overridden(recipe, options))}\n")
    return overridden(recipe, options), settings, data


def _train(options: argparse.Namespace) -> int | None:
    recipe, settings, data = _recipe(options)

    from keras_resdense.exporting.export import format_table
    from keras_resdense.training import train
    from keras_resdense.training.run_checkpoint import Interrupted

    start = time.perf_counter()
    try:
        run = train.train(recipe, settings, folder=options.folder, name=options.name, data=data)
    except Interrupted as stop:
        print(f"\nkeras-resdense: {stop}", file=sys.stderr)
        return INTERRUPTED
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    print(f"\n{run.accuracy:.2%} of the held-out images right, after {minutes} min {seconds} s. In {run.folder}/:")
    print(format_table(run.exports))
    return None


def _evaluate(options: argparse.Namespace) -> None:
    from keras_resdense import runs

    measured = runs.evaluate(options.model, options.data, options.data_dir, options.on_bad_image, options.weights)
    print(f"{measured['accuracy']:.2%} of {measured['images']:,} held-out images right; loss {measured['loss']:.4f}")


def _predict(options: argparse.Namespace) -> None:
    format, output, after = answers.FORMATS[options.format], options.output, None
    if options.resume and not output:
        raise ValueError("--resume needs the file to resume: add --output.")
    if format.text is None and not output:
        raise ValueError(f"{options.format} is not a text format: add --output.")
    if options.resume:
        after = answers.resume(output, format)
    elif output and output.exists():
        raise ValueError(f"{output} exists: choose another file, or resume it with --resume.")

    from keras_resdense import runs

    found = runs.predict(
        runs.opened(options.model, options.weights, options.runtime),
        options.images,
        options.labels,
        options.top,
        options.on_bad_image,
        after=after,
        show_progress=bool(output) or not sys.stdout.isatty(),
    )
    if output:
        answers.save(found, format, output, begun=after is not None)
    else:
        answers.write(found, format, sys.stdout)


def _prepare(options: argparse.Namespace) -> None:
    from keras_resdense.data.prepare import prepare

    beam = None if options.beam is None else shlex.split(options.beam)
    made = prepare(options.folder, options.to, options.image_size, options.on_bad_image, beam)
    print(f"{made}/ is ready: keras-resdense train --data {made}")


def _export(options: argparse.Namespace) -> None:
    from keras_resdense import runs
    from keras_resdense.exporting.device_report import device_report
    from keras_resdense.exporting.export import format_table
    from keras_resdense.exporting.formats import EXPORTERS

    rows = [EXPORTERS[name] for name in options.format]
    if options.report and not any(row.file_name.endswith(".tflite") for row in rows):
        raise ValueError(
            f"--report describes .tflite files, and {', '.join(options.format)} writes none: add a format such as "
            "tflite, or leave it out."
        )
    for field in vars(options).keys() & {"batch", "pixels", "learns", "license", "opset", "version"}:
        if not any(hasattr(row, field) for row in rows):
            raise ValueError(f"{field} can be chosen for other formats, not for {', '.join(options.format)}.")
        change = {field: getattr(options, field)}
        rows = [dataclasses.replace(row, **change) if hasattr(row, field) else row for row in rows]
    made: list = []
    try:
        chosen = overridden(ExportImages(), options)
        runs.export_run(options.model, rows, chosen, options.folder, options.overwrite, made.append)
    finally:
        # If a later format fails, the earlier ones are still shown.
        if made:
            print(format_table(made))
        for written in made if options.report else ():
            if written.path.suffix == ".tflite":
                print(f"\n{device_report(written.path)}")


def _list(options: argparse.Namespace) -> None:
    if options.recipes:
        for name, row in recipes.RECIPES.items():
            print(f"{name}\n  published  {row.published}\n  measured   {row.measured}\n  source     {row.source}")
        return
    print("\n".join(_matching(options.pattern)))


def _weights(options: argparse.Namespace) -> None:
    from keras_resdense.pretrained.catalogue import list_weights

    found = [row for variant in _matching(options.pattern) for row in list_weights(variant)]
    if not found:
        raise ValueError(f"There are no published weights of {options.pattern}; 'keras-resdense weights' lists all.")
    lines = [("variant", "name", "top-1", "at", "licence", "download", "preprocessing")]
    for row in found:
        top1 = "" if row.top1 is None else f"{row.top1:.1f} %"
        size = f"{row.megabytes} MB"
        lines.append((row.variant, row.name, top1, f"{row.input_size} px", row.licence, size, row.preprocessing))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    print("\n`train --weights NAME` starts from one of them, `--weights imagenet` from the first with a free licence.")


def _matching(pattern: str) -> list[str]:
    found = fnmatch.filter((name.lower() for name in BUILDERS), pattern.lower())
    if not found:
        raise ValueError(f"No variant matches {pattern!r}; 'keras-resdense list' names all.")
    return found


def _summary(options: argparse.Namespace) -> None:
    from keras_resdense.exporting.read import load_model
    from keras_resdense.insight.analysis import format_parts, summarise, write_parts
    from keras_resdense.insight.drawing import check_suffix, draw_network, save_figure
    from keras_resdense.networks import zoo

    if options.picture:
        check_suffix(options.picture)
    path, per = Path(options.model), options.per or "stage"
    model = load_model(path, compile=False) if path.exists() else zoo.create_model(options.model)
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
    from keras_resdense.files import write_text
    from keras_resdense.insight import benchmark

    measured = benchmark.benchmark(
        options.variant,
        image_size=options.image_size,
        batch_size=options.batch_size,
        steps=options.steps,
        precision=options.precision,
    )
    print(measured)
    if options.json:
        write_text(options.json, json.dumps(dataclasses.asdict(measured), indent=2) + "\n")


#: The function that carries out each command.
COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "prepare": _prepare,
    "export": _export,
    "list": _list,
    "weights": _weights,
    "summary": _summary,
    "benchmark": _benchmark,
}

if __name__ == "__main__":
    sys.exit(main())
