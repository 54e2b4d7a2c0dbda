"""`neuron-attribution project`: what neurons mean in the vocabulary."""

from __future__ import annotations

import argparse
from itertools import zip_longest

from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import add_option, argument_type, enum_value, positive_number
from neuron_attribution.cli.output import (
    Lines,
    add_output_arguments,
    facts,
    model_text,
    number,
    print_result,
    table,
    token_text,
)
from neuron_attribution.convert import project_neuron_result_to_proto
from neuron_attribution.neurons import parse_head, parse_neuron
from neuron_attribution.requests import Side, Subkey
from neuron_attribution.results import NeuronProjection, ProjectedToken, ProjectNeuronResult

HELP = "project neurons into the vocabulary"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "neurons",
        metavar="NEURON",
        nargs="+",
        type=argument_type(parse_neuron),
        help="LAYER.INDEX for FFN, LAYER.eEXPERT.INDEX for an expert's, LAYER.HEAD.INDEX for attention",
    )
    add_option(
        parser,
        "--side",
        kind=enum_value(Side),
        default=Side.SUBVALUE,
        metavar="{subvalue,subkey}",
        help="what the neuron writes, or what activates it",
    )
    add_option(parser, "--through", kind=parse_head, metavar="LAYER.HEAD", help="read FFN neurons through this head")
    add_option(parser, "--top-k", kind=positive_number, default=10, metavar="N", help="vocabulary tokens at either end")
    add_option(
        parser,
        "--subkey",
        kind=enum_value(Subkey),
        default=Subkey.UP,
        metavar="{up,gate}",
        help="which subkey of a gated FFN",
    )
    add_output_arguments(parser)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Project and print."""
    with connect(arguments) as client:
        result = client.project_neuron(
            arguments.neurons,
            side=arguments.side,
            through=arguments.through,
            top_k=arguments.top_k,
            subkey=arguments.subkey,
        )
    print_result(arguments, lambda: project_neuron_result_to_proto(result), lambda: projection_lines(result))
    return 0


def projection_lines(result: ProjectNeuronResult) -> Lines:
    """The projections for people."""
    lines = [line for item in result.projections for line in (*_neuron_lines(item), "")]
    return [*lines, *facts([("model", model_text(result.model))])]


def _neuron_lines(item: NeuronProjection) -> Lines:
    rows = zip_longest(item.projection.top, item.projection.bottom)
    cells = [(*_cells(top), *_cells(bottom)) for top, bottom in rows]
    return table(f"neuron {item.neuron}", ("top", ">score", "bottom", ">score"), cells)


def _cells(token: ProjectedToken | None) -> tuple[str, str]:
    return ("", "") if token is None else (token_text(token.token), number(token.score))
