"""`neuron-attribution tokenize`: the exact tokens of a text."""

from __future__ import annotations

import argparse

from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import add_switch
from neuron_attribution.cli.output import (
    Lines,
    add_output_arguments,
    facts,
    model_text,
    print_result,
    table,
    token_text,
)
from neuron_attribution.convert import tokenize_result_to_proto
from neuron_attribution.results import TokenizeResult

HELP = "show the exact tokens a text becomes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("text", metavar="TEXT", help="the text")
    add_switch(parser, "--special-tokens", help="add the tokenizer's special tokens, or not (default: its own way)")
    add_output_arguments(parser)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Tokenize and print."""
    with connect(arguments) as client:
        result = client.tokenize(arguments.text, add_special_tokens=arguments.special_tokens)
    print_result(arguments, lambda: tokenize_result_to_proto(result), lambda: token_lines(result))
    return 0


def token_lines(result: TokenizeResult) -> Lines:
    """The tokens for people."""
    rows = [
        (str(position), str(item.token.id), token_text(item.token), str(item.start), str(item.end))
        for position, item in enumerate(result.tokens)
    ]
    columns = (">position", ">id", "token", ">first byte", ">end byte")
    return [*table("tokens", columns, rows), "", *facts([("model", model_text(result.model))])]
