"""`neuron-attribution project`: what neurons mean in the vocabulary."""

from __future__ import annotations

import argparse

from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import add_option, argument_type, enum_value, positive_number
from neuron_attribution.cli.output import Lines, add_output_arguments, facts, model_text, print_result, text_tables
from neuron_attribution.cli.waiting import waiting
from neuron_attribution.convert import project_neuron_result_to_proto
from neuron_attribution.display.records import records
from neuron_attribution.display.tables import tables
from neuron_attribution.neurons import parse_head, parse_neuron
from neuron_attribution.requests import Side, Subkey
from neuron_attribution.results import ProjectNeuronResult

HELP = "project neurons into the vocabulary"
EXAMPLE = "project 24.1005"


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
    add_option(parser, "--through", kind=parse_head, metavar="LAYER.hHEAD", help="read FFN neurons through this head")
    add_option(parser, "--top-k", kind=positive_number, default=10, metavar="N", help="vocabulary tokens at either end")
    add_option(
        parser,
        "--subkey",
        kind=enum_value(Subkey),
        default=Subkey.UP,
        metavar="{up,gate}",
        help="which subkey of a gated FFN",
    )
    add_output_arguments(parser, csv=True)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Project and print."""
    with waiting("projecting"), connect(arguments) as client:
        result = client.project_neuron(
            arguments.neurons,
            side=arguments.side,
            through=arguments.through,
            top_k=arguments.top_k,
            subkey=arguments.subkey,
        )
    print_result(
        arguments,
        lambda: project_neuron_result_to_proto(result),
        lambda: projection_lines(result),
        lambda: records(result),
    )
    return 0


def projection_lines(result: ProjectNeuronResult) -> Lines:
    """The projections for people."""
    return [*text_tables(tables(result)), "", *facts([("model", model_text(result.model))])]
