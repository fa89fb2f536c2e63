"""The command line: `keras-resdense`, or `python -m keras_resdense`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

from keras_resdense import training, zoo
from keras_resdense.recipes import Recipe, Settings


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, or 1 with a message where the input makes no sense."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"keras-resdense: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("keras-resdense", description="Residual and dense networks for Keras 3.")
    commands = parser.add_subparsers(title="commands", required=True)

    train = commands.add_parser("train", help="train on images, evaluate, save and export")
    for field in [*dataclasses.fields(Recipe), *dataclasses.fields(Settings)]:
        _add_field(train, field)
    train.add_argument("--folder", default="saved_models", help="where the run's folder is made; default %(default)s")
    train.add_argument("--name", help="of the run; default MODEL_DATA")
    train.set_defaults(run=_train)

    names = commands.add_parser("list", help="list variants")
    names.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*d'; default all")
    names.set_defaults(run=_list)
    return parser


def _add_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    flag = "--" + field.name.replace("_", "-")
    if isinstance(field.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
    elif isinstance(field.default, tuple):
        parser.add_argument(flag, type=float, nargs="*", default=field.default, help="default none")
    else:
        parser.add_argument(flag, type=type(field.default), default=field.default, help="default %(default)s")


def _train(options: argparse.Namespace) -> None:
    recipe, settings = (
        kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})
        for kind in (Recipe, Settings)
    )
    start = time.perf_counter()
    run = training.train(recipe, settings, folder=options.folder, name=options.name)
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    print(f"\n{run.accuracy:.2%} of the held-out images right, after {minutes} min {seconds} s. In {run.folder}/:")
    print(f"{'format':12}{'file':14}{'size':>10}{'difference':>12}{'agreement':>11}{'accuracy':>10}")
    for made in run.exports:
        measured = f"{made.difference:12.1e}{made.agreement:11.2%}{made.accuracy:10.2%}"
        print(f"{made.format:12}{made.path.name:14}{made.size / 1e6:7.2f} MB{measured}")


def _list(options: argparse.Namespace) -> None:
    names = zoo.list_models(options.pattern)
    if not names:
        raise ValueError(f"No variant matches {options.pattern!r}; 'keras-resdense list' names all.")
    print("\n".join(names))


if __name__ == "__main__":
    sys.exit(main())
