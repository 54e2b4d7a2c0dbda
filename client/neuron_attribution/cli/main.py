"""The command `neuron-attribution`.

Exit status: 0; 2 for wrong usage; 1 with one line on standard error for a failed call; 3 where `analyze` or `evaluate`
is done but some prompts or facts have failed; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Protocol

from neuron_attribution.cli.commands import (
    analyze,
    attribute,
    compare,
    completion,
    evaluate,
    intervene,
    model,
    project,
    serve,
    tokenize,
    trace,
)
from neuron_attribution.cli.commands.serve import MissingExtraError
from neuron_attribution.cli.connection import TOKEN_VARIABLE
from neuron_attribution.cli.options import UsageError, drop_overruled, variable
from neuron_attribution.errors import NeuronAttributionError

PROGRAM = "neuron-attribution"
DESCRIPTION = "Which neurons of a language model made it say what it said."
INTERRUPTED = 130
EXCLUSIVE = (("--json", "--csv", "--format"), ("--target", "--target-id", "--completion", "--generate"))
"""Options that exclude each other."""


class Command(Protocol):
    """What a command's module provides."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command; the exit status."""


COMMANDS: dict[str, Command] = {
    "serve": serve,
    "attribute": attribute,
    "analyze": analyze,
    "project": project,
    "compare": compare,
    "intervene": intervene,
    "trace": trace,
    "evaluate": evaluate,
    "model": model,
    "tokenize": tokenize,
    "completion": completion,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    _write_every_character()
    try:
        status = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (NeuronAttributionError, MissingExtraError) as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _discard_output()
        return 0
    except OSError as error:  # a full disk, a folder that cannot be written to; of a server it would be a bug
        if words[:1] == ["serve"]:
            raise
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        _discard_output()
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def client_variables() -> frozenset[str]:
    """The environment variables the commands that call the service read."""
    flags = []
    for name, command in COMMANDS.items():
        if name not in {"serve", "completion"}:
            parser = argparse.ArgumentParser(add_help=False)
            command.add_arguments(parser)
            flags += [action.option_strings[0] for action in parser._actions if action.option_strings]
    return frozenset({TOKEN_VARIABLE, *map(variable, flags)})


def full_parser() -> argparse.ArgumentParser:
    """The parser of every command that can run here."""
    parser, commands = _empty_parser()
    for name, command in COMMANDS.items():
        command_parser = _add_command(commands, name)
        with suppress(MissingExtraError):
            command.add_arguments(command_parser)
    return parser


def _run(words: Sequence[str]) -> int:
    chosen = next((word for word in words if not word.startswith("-")), None)
    parser = _parser(chosen)
    arguments = parser.parse_args(words, argparse.Namespace(full_parser=full_parser))
    for flags in EXCLUSIVE:
        drop_overruled(arguments, words, flags)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except UsageError as error:
        parser.error(str(error))


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser. Only the chosen command gets its arguments: those of `serve` need the server's package."""
    parser, commands = _empty_parser()
    for name, command in COMMANDS.items():
        command_parser = _add_command(commands, name)
        if name == chosen:
            command.add_arguments(command_parser)
            _shorten_usage(command_parser)
    return parser


def _empty_parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version('neuron-attribution')}")
    return parser, parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)


def _add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    return commands.add_parser(
        name,
        help=command.HELP,
        description=f"{command.HELP}\n\nexample: {PROGRAM} {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _shorten_usage(parser: argparse.ArgumentParser) -> None:
    """Name what must be given; the options are listed below."""
    given = [action.metavar or action.dest.upper() for action in parser._actions if not action.option_strings]
    parser.usage = " ".join(["%(prog)s", *map(str, given), "[OPTION ...]"])


def _write_every_character() -> None:
    """Tokens hold any character; one the terminal's encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Keep Python from complaining once more when it flushes at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
