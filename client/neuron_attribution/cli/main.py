"""The command `neuron-attribution`.

Exit status: 0; 2 for wrong usage; 1 with one line on standard error for a failed call; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol

from neuron_attribution.cli import attribute, compare, evaluate, intervene, model, project, serve, tokenize
from neuron_attribution.cli.connection import TOKEN_VARIABLE
from neuron_attribution.cli.options import UsageError, variable
from neuron_attribution.cli.serve import MissingExtraError
from neuron_attribution.errors import NeuronAttributionError

PROGRAM = "neuron-attribution"
DESCRIPTION = "Which neurons of a language model made it say what it said."
INTERRUPTED = 130


class Command(Protocol):
    """What a command's module provides."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command; the exit status."""


COMMANDS: dict[str, Command] = {
    "serve": serve,
    "attribute": attribute,
    "project": project,
    "compare": compare,
    "intervene": intervene,
    "evaluate": evaluate,
    "model": model,
    "tokenize": tokenize,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    _write_every_character()
    try:
        status = _run(words)
        sys.stdout.flush()
    except (NeuronAttributionError, MissingExtraError) as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _discard_output()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def client_variables() -> frozenset[str]:
    """The environment variables the commands other than `serve` read."""
    flags = []
    for name, command in COMMANDS.items():
        if name != "serve":
            parser = argparse.ArgumentParser(add_help=False)
            command.add_arguments(parser)
            flags += [action.option_strings[0] for action in parser._actions if action.option_strings]
    return frozenset({TOKEN_VARIABLE, *map(variable, flags)})


def _run(words: Sequence[str]) -> int:
    chosen = next((word for word in words if not word.startswith("-")), None)
    parser = _parser(chosen)
    arguments = parser.parse_args(words)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except UsageError as error:
        parser.error(str(error))


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser. Only the chosen command gets its arguments: those of `serve` need the server's package."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version('neuron-attribution')}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command_parser = commands.add_parser(name, help=command.HELP, description=command.HELP, allow_abbrev=False)
        if name == chosen:
            command.add_arguments(command_parser)
    return parser


def _write_every_character() -> None:
    """Tokens hold any character; one the terminal's encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Keep Python from complaining once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
