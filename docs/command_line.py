"""Writes the reference of the command line, as its parser knows it: `python docs/command_line.py`."""

import argparse
from pathlib import Path

from keras_resdense.__main__ import COMMANDS
from keras_resdense.options import make_parser

PAGE = Path(__file__).parent / "reference" / "command_line.md"
HEAD = """# Command line

`keras-resdense COMMAND`, or `python -m keras_resdense COMMAND`. The exit code is 0 where all went well, 1 after an
error, 2 where the command could not be read, 130 after Ctrl-C and 143 after SIGTERM. This page is written by
`python docs/command_line.py`.
"""


def page() -> str:
    """Returns the page as Markdown."""
    (commands,) = (action.choices for action in make_parser(COMMANDS)._actions if action.dest == "command")
    return "\n".join([HEAD, *(section(name, parser) for name, parser in commands.items())])


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """Returns what there is to say of a command."""
    lines = [f"## {name}", "", parser.description or ""]
    # The groups of arguments without and with dashes come first, and share a table.
    general, groups = parser._action_groups[:2], parser._action_groups[2:]
    for group in (None, *groups):
        actions = group._group_actions if group else [action for some in general for action in some._group_actions]
        title = ["", f"### {group.title[0].upper()}{group.title[1:]}"] if group else []
        lines += [*title, "", "| | |", "|---|---|", *(row(action) for action in actions if action.dest != "help")]
    _, examples = (parser.epilog or "").split("examples:\n")
    examples, *after = examples.split("\n\n")
    after = [f"{line}\n" for line in after]
    return "\n".join([*lines, "", "```shell", *(line[2:] for line in commented(examples.rstrip())), "```", "", *after])


def row(action: argparse.Action) -> str:
    """Returns a row of a table: an option, or an argument that has no dashes, and what it means."""
    words = ", ".join(action.option_strings) or action.metavar or action.dest
    value = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
    choices = f"; one of {', '.join(action.choices)}" if action.choices and action.metavar is None else ""
    said = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%").replace("|", "\\|")
    return f"| `{words}{value}` | {said}{choices} |"


def commented(examples: str) -> list[str]:
    """Turns the explanation below an example into a comment above it."""
    lines, held = [], []
    for line in examples.splitlines():
        if line.startswith("      ") and not (held and held[-1].endswith("\\")):
            lines += [f"  # {line.strip()}", *held]
            held = []
        elif line.startswith("      "):
            held.append(line)
        else:
            lines += held
            held = [line]
    return lines + held


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
