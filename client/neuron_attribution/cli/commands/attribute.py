"""`neuron-attribution attribute`: explain next-token predictions of a text."""

from __future__ import annotations

import argparse

from neuron_attribution.cli.attribution_text import attribution_lines
from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.interventions import add_intervention_arguments, interventions_of
from neuron_attribution.cli.options import (
    UsageError,
    add_flag,
    add_option,
    add_switch,
    comma_separated,
    enum_value,
    positions,
    positive_number,
    whole_number,
)
from neuron_attribution.cli.output import add_output_arguments, print_result
from neuron_attribution.cli.prompts import add_prompt_arguments, prompt_of
from neuron_attribution.cli.report import add_report_argument, write_report
from neuron_attribution.cli.sampling import add_sampling_arguments, sampling_of
from neuron_attribution.cli.waiting import waiting
from neuron_attribution.convert import attribute_result_to_proto
from neuron_attribution.display.records import records
from neuron_attribution.neurons import parse_neuron, parse_query_source
from neuron_attribution.requests import Aggregate, AttributeOptions, Direction, Part, ScoringMethod, Subkey

HELP = "explain next-token predictions of a text by layers, heads and neurons"
EXAMPLE = 'attribute "The capital of France is"'
DEFAULTS = AttributeOptions()
EXPLAINED = ("target", "target_id", "completion", "generate", "span")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_prompt_arguments(parser)
    _add_explained_arguments(parser.add_argument_group("what is explained (default: the model's own next token)"))
    add_sampling_arguments(parser)
    _add_choice_arguments(parser.add_argument_group("how it is explained"))
    _add_number_arguments(parser.add_argument_group("how much is returned"))
    add_intervention_arguments(parser)
    add_output_arguments(parser, csv=True)
    add_flag(
        parser,
        "--hide-common",
        help="leave neurons out of the text that are as strong in a quarter of all contexts, or more",
    )
    add_report_argument(parser)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Attribute and print."""
    prompt = prompt_of(arguments)
    _check_explained(arguments)
    with waiting("attributing"), connect(arguments) as client:
        result = client.attribute(
            prompt,
            target=arguments.target if arguments.target_id is None else arguments.target_id,
            completion=arguments.completion,
            generate=arguments.generate,
            sampling=sampling_of(arguments),
            span=arguments.span,
            contrast_completion=arguments.contrast_completion,
            contrast=arguments.contrast if arguments.contrast_id is None else arguments.contrast_id,
            add_special_tokens=arguments.special_tokens,
            parts=arguments.parts,
            top_k=arguments.top_k,
            direction=arguments.direction,
            scoring_method=arguments.method,
            projection_top_k=arguments.projection_top_k,
            query_sources=arguments.query_sources,
            subkey=arguments.subkey,
            include_final_norm_bias=arguments.include_final_norm_bias,
            neurons=arguments.neuron,
            exhaustive=arguments.exhaustive,
            position_projection_top_k=arguments.position_projection_top_k,
            head_top_k=arguments.head_top_k,
            attention_neurons_over_positions=arguments.attention_neurons_over_positions,
            interventions=interventions_of(arguments),
            query_from=arguments.query_from,
            aggregate=arguments.aggregate,
            aggregate_only=arguments.aggregate_only,
        )
    if arguments.report is not None:
        write_report(arguments.report, result.to_html())
    print_result(
        arguments,
        lambda: attribute_result_to_proto(result),
        lambda: attribution_lines(result, hide_common=arguments.hide_common),
        lambda: records(result),
    )
    return 0


def _add_explained_arguments(group: argparse._ArgumentGroup) -> None:
    add_option(group, "--target", metavar="TEXT", help="the explained token's exact text, leading space and all")
    add_option(group, "--target-id", kind=whole_number, metavar="ID", help="the explained token's id")
    add_option(group, "--completion", metavar="TEXT", help="explain every token of this continuation")
    add_option(group, "--generate", kind=positive_number, metavar="N", help="explain N generated tokens")
    add_option(
        group,
        "--span",
        kind=positions,
        metavar="START:END",
        help="explain the prompt's tokens from START up to END, without it",
    )
    add_option(group, "--contrast", metavar="TEXT", help="explain the difference to this token")
    add_option(group, "--contrast-id", kind=whole_number, metavar="ID", help="explain the difference to this token")
    add_option(
        group, "--contrast-completion", metavar="TEXT", help="explain the difference to this answer; with --aggregate"
    )
    add_option(
        group,
        "--aggregate",
        kind=enum_value(Aggregate),
        metavar="{sum,mean}",
        help="explain the explained tokens together as well: the sum of their log probabilities, or its mean",
    )
    add_flag(group, "--aggregate-only", help="print that alone, without an explanation of each token")
    add_switch(group, "--special-tokens", help="add the tokenizer's special tokens, or not (default: its own way)")


def _add_choice_arguments(group: argparse._ArgumentGroup) -> None:
    names = ", ".join(part.value for part in Part)
    add_option(
        group,
        "--parts",
        kind=comma_separated(enum_value(Part)),
        default=DEFAULTS.parts,
        shown="all",
        metavar="PART,...",
        help=f"the parts to compute, of {names}",
    )
    _add_enum_option(group, "--direction", DEFAULTS.direction, "the end of the rankings to return")
    methods = ", ".join(method.value for method in ScoringMethod)
    add_option(
        group,
        "--method",
        kind=enum_value(ScoringMethod),
        default=DEFAULTS.scoring_method,
        metavar="METHOD",
        help=f"the score of value neurons: {methods}",
    )
    _add_enum_option(group, "--subkey", DEFAULTS.subkey, "the key of FFN value neurons in the query layers")
    add_flag(group, "--include-final-norm-bias", help="make the final norm's bias part of every projection")
    add_flag(group, "--exhaustive", help="score every neuron instead of bounding; slow")
    add_flag(
        group,
        "--attention-neurons-over-positions",
        help="rank attention value neurons over all source positions together",
    )
    add_option(
        group,
        "--neuron",
        kind=parse_neuron,
        default=(),
        shown="none",
        many=True,
        metavar="N",
        help="score these too: LAYER.INDEX (FFN), LAYER.HEAD.INDEX (attention)",
    )
    add_option(
        group,
        "--query-from",
        kind=parse_query_source,
        default=(),
        shown="the strongest ones",
        many=True,
        metavar="N",
        help="the value neurons that the query parts start from; LAYER.HEAD.INDEX@POSITION for one source position",
    )


def _add_number_arguments(group: argparse._ArgumentGroup) -> None:
    _add_number_option(group, "--top-k", DEFAULTS.top_k, "neurons in each ranking", smallest=1)
    _add_number_option(group, "--head-top-k", DEFAULTS.head_top_k, "heads, with their positions", smallest=1)
    _add_number_option(group, "--projection-top-k", DEFAULTS.projection_top_k, "vocabulary tokens for each neuron")
    _add_number_option(
        group, "--query-sources", DEFAULTS.query_sources, "value neurons whose activation is traced", smallest=1
    )
    _add_number_option(
        group,
        "--position-projection-top-k",
        DEFAULTS.position_projection_top_k,
        "vocabulary tokens for each position of the returned heads",
    )


def _add_enum_option(group: argparse._ArgumentGroup, flag: str, default: Direction | Subkey, help: str) -> None:
    choices = ",".join(member.value for member in type(default))
    add_option(group, flag, kind=enum_value(type(default)), default=default, metavar=f"{{{choices}}}", help=help)


def _add_number_option(
    group: argparse._ArgumentGroup, flag: str, default: int, help: str, *, smallest: int = 0
) -> None:
    kind = positive_number if smallest else whole_number
    add_option(group, flag, kind=kind, default=default, metavar="N", help=help)


def _check_explained(arguments: argparse.Namespace) -> None:
    given = ["--" + name.replace("_", "-") for name in EXPLAINED if getattr(arguments, name) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; give one of them")
    if arguments.contrast is not None and arguments.contrast_id is not None:
        raise UsageError("--contrast and --contrast-id exclude each other; give one of them")
