"""`neuron-attribution tokenize`: the exact tokens of a text or a conversation."""

from __future__ import annotations

import argparse

from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import UsageError, add_switch
from neuron_attribution.cli.output import Lines, add_output_arguments, facts, model_text, print_result, text_tables
from neuron_attribution.cli.prompts import add_conversation_arguments, conversation_of
from neuron_attribution.cli.waiting import waiting
from neuron_attribution.convert import tokenize_result_to_proto
from neuron_attribution.display.records import records
from neuron_attribution.display.tables import tables
from neuron_attribution.results import TokenizeResult

HELP = "show the exact tokens a text becomes"
EXAMPLE = 'tokenize " Paris"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the text")
    add_conversation_arguments(parser)
    add_switch(parser, "--special-tokens", help="add the tokenizer's special tokens, or not (default: its own way)")
    add_output_arguments(parser, csv=True)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Tokenize and print."""
    talk = conversation_of(arguments)
    if (arguments.text is None) == (talk is None):
        raise UsageError("give a TEXT or messages (--user, --messages), one of them")
    text = arguments.text if talk is None else talk
    with waiting("tokenizing"), connect(arguments) as client:
        result = client.tokenize(text, add_special_tokens=arguments.special_tokens)
    print_result(
        arguments,
        lambda: tokenize_result_to_proto(result),
        lambda: token_lines(result),
        lambda: records(result),
    )
    return 0


def token_lines(result: TokenizeResult) -> Lines:
    """The tokens for people."""
    return [*text_tables(tables(result)), "", *facts([("model", model_text(result.model))])]
