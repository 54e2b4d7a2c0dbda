"""The prompt of a command: a text, or token ids."""

from __future__ import annotations

import argparse

from neuron_attribution.cli.options import UsageError, add_option, comma_separated, whole_number
from neuron_attribution.transport.calls import TextOrIds


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the text, and what may stand in its place."""
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the prompt")
    add_option(
        parser,
        "--token-ids",
        kind=comma_separated(whole_number),
        metavar="ID,...",
        help="the prompt as token ids, used exactly as given, in place of TEXT",
    )


def prompt_of(arguments: argparse.Namespace) -> TextOrIds:
    """The prompt that was given. Raises UsageError unless there is exactly one."""
    if (arguments.text is None) == (arguments.token_ids is None):
        raise UsageError("give a TEXT or --token-ids, one of them")
    prompt: TextOrIds = arguments.token_ids if arguments.text is None else arguments.text
    return prompt
