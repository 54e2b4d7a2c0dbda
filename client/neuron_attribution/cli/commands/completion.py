"""`neuron-attribution completion`: a script that completes commands, options and their values in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

HELP = "print a script that completes this command line in a shell"
EXAMPLE = "completion bash"
SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")


def run(arguments: argparse.Namespace) -> int:
    """Print the script for the commands that can run here."""
    parser: argparse.ArgumentParser = arguments.full_parser()
    for action in _actions(parser):
        _tell_values(action)
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action


def _tell_values(action: argparse.Action) -> None:
    """What may follow an option, as its help has it: `{one,other}` or a FILE."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if metavar == "FILE":
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif metavar.startswith("{"):
        action.choices = metavar.strip("{}").split(",")
