"""`neuron-attribution trace`: follow a prediction back to the prompt's tokens."""

from __future__ import annotations

import argparse
import json
from enum import Enum

from neuron_attribution.cli.attribution_text import timings_text
from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import (
    UsageError,
    add_flag,
    add_option,
    add_switch,
    enum_value,
    positions,
    positive_number,
    share,
    whole_number,
)
from neuron_attribution.cli.output import Lines, facts, model_text, print_csv, text_tables
from neuron_attribution.cli.prompts import add_prompt_arguments, prompt_of
from neuron_attribution.cli.report import add_report_argument, write_report
from neuron_attribution.cli.waiting import waiting
from neuron_attribution.display.records import edge_records, records
from neuron_attribution.display.tables import tables
from neuron_attribution.requests import Subkey
from neuron_attribution.traces import SCREENED_PER_NODE, Trace, TraceOptions

HELP = "follow a prediction back to the text's tokens: which neurons, at which positions, carried it"
EXAMPLE = 'trace "The capital of France is" --target " Paris"'
DEFAULTS = TraceOptions()
EXPLAINED = ("target", "target_id", "completion", "span")


class Format(Enum):
    """What is printed."""

    TEXT = "text"
    JSON = "json"
    NODES_CSV = "nodes-csv"
    EDGES_CSV = "edges-csv"
    NODE_LINK = "node-link"
    CIRCUIT_TRACER = "circuit-tracer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_prompt_arguments(parser)
    _add_explained_arguments(parser.add_argument_group("what is followed back (default: the model's own next token)"))
    _add_graph_arguments(parser.add_argument_group("what the graph holds"))
    forms = parser.add_mutually_exclusive_group()
    add_flag(forms, "--json", help="print the response as protobuf JSON, and nothing else")
    add_option(
        forms,
        "--format",
        kind=enum_value(Format),
        default=Format.TEXT,
        metavar="FORMAT",
        help="text; json as --json; nodes-csv, edges-csv; node-link JSON for networkx; JSON as circuit-tracer's",
    )
    add_report_argument(parser)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trace and print."""
    prompt = prompt_of(arguments)
    _check_explained(arguments)
    with waiting("tracing"), connect(arguments) as client:
        trace = client.trace(
            prompt,
            target=arguments.target if arguments.target_id is None else arguments.target_id,
            completion=arguments.completion,
            span=arguments.span,
            contrast=arguments.contrast if arguments.contrast_id is None else arguments.contrast_id,
            add_special_tokens=arguments.special_tokens,
            nodes=arguments.nodes,
            edge_share=arguments.edge_share,
            subkey=arguments.subkey,
            measure=DEFAULTS.measure if arguments.measure is None else arguments.measure,
            heads=arguments.heads,
            screened=arguments.screened,
            projection_top_k=arguments.projection_top_k,
            leave_out_always_on=arguments.leave_out_always_on,
        )
    if arguments.report is not None:
        write_report(arguments.report, trace.to_html())
    _print(trace, Format.JSON if arguments.json else arguments.format)
    return 0


def trace_lines(trace: Trace) -> Lines:
    """A graph for people: what it holds, the strongest paths, neurons and tokens."""
    foot = [("model", model_text(trace.model)), ("time", timings_text(trace.timings))]
    return [*text_tables(tables(trace)), "", *facts(foot)]


def _print(trace: Trace, form: Format) -> None:
    match form:
        case Format.TEXT:
            print("\n".join(trace_lines(trace)))
        case Format.JSON:
            print(trace.to_json())
        case Format.NODES_CSV:
            print_csv(records(trace))
        case Format.EDGES_CSV:
            print_csv(edge_records(trace))
        case Format.NODE_LINK:
            print(json.dumps(trace.to_node_link(), indent=2, ensure_ascii=False))
        case Format.CIRCUIT_TRACER:
            print(json.dumps(trace.to_circuit_tracer(), indent=2, ensure_ascii=False))


def _add_explained_arguments(group: argparse._ArgumentGroup) -> None:
    add_option(group, "--target", metavar="TEXT", help="the token's exact text, leading space and all")
    add_option(group, "--target-id", kind=whole_number, metavar="ID", help="the token's id")
    add_option(group, "--completion", metavar="TEXT", help="every token of this continuation, together")
    add_option(
        group, "--span", kind=positions, metavar="START:END", help="the text's tokens from START up to END, together"
    )
    add_option(group, "--contrast", metavar="TEXT", help="the difference to this token's logit")
    add_option(group, "--contrast-id", kind=whole_number, metavar="ID", help="the same by the token's id")
    add_switch(group, "--special-tokens", help="add the tokenizer's special tokens, or not (default: its own way)")


def _add_graph_arguments(group: argparse._ArgumentGroup) -> None:
    add_option(
        group,
        "--nodes",
        kind=positive_number,
        default=DEFAULTS.nodes,
        metavar="N",
        help="neurons that are kept, each at its position: those of the largest effect",
    )
    add_option(
        group,
        "--edge-share",
        kind=share,
        default=DEFAULTS.edge_share,
        metavar="SHARE",
        help="keep a node's largest incoming edges until they are this share of all",
    )
    choices = ",".join(key.value for key in (Subkey.UP, Subkey.GATE))
    add_option(
        group,
        "--subkey",
        kind=enum_value(Subkey),
        default=DEFAULTS.subkey,
        metavar=f"{{{choices}}}",
        help="the key of gated neurons; the factor beside it is frozen",
    )
    add_switch(group, "--measure", help="measure effects by zeroing neurons one by one, or not (default: measure)")
    add_flag(group, "--heads", help="name the head that carries most of each edge from an earlier position")
    add_option(
        group,
        "--screened",
        kind=positive_number,
        shown=f"{SCREENED_PER_NODE} for each that is kept",
        metavar="N",
        help="neurons that are measured",
    )
    add_option(
        group,
        "--projection-top-k",
        kind=whole_number,
        default=DEFAULTS.projection_top_k,
        metavar="N",
        help="vocabulary tokens for each neuron",
    )
    add_flag(group, "--leave-out-always-on", help="leave out neurons that are on whatever is asked")


def _check_explained(arguments: argparse.Namespace) -> None:
    given = ["--" + name.replace("_", "-") for name in EXPLAINED if getattr(arguments, name) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; give one of them")
    if arguments.contrast is not None and arguments.contrast_id is not None:
        raise UsageError("--contrast and --contrast-id exclude each other; give one of them")
