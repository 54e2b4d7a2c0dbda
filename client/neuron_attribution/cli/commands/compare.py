"""`neuron-attribution compare`: the neurons whose score differs most between two predictions."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from neuron_attribution.cli.comparison_text import comparison_lines, head_effect_lines
from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.interventions import add_intervention_arguments, interventions_of
from neuron_attribution.cli.options import (
    UsageError,
    add_flag,
    add_option,
    add_switch,
    positive_number,
    whole_number,
)
from neuron_attribution.cli.prompts import add_conversation_arguments, conversation_of
from neuron_attribution.cli.report import add_report_argument, write_report
from neuron_attribution.cli.waiting import waiting
from neuron_attribution.comparisons import Comparison, HeadEffects
from neuron_attribution.conversations.messages import Conversation
from neuron_attribution.display.plain_json import plain_json

HELP = "find the neurons whose score differs most between two predictions"
EXAMPLE = 'compare "The capital of France is" "The capital of Italy is"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the first prompt")
    parser.add_argument("other_text", metavar="OTHER_TEXT", nargs="?", help="the second prompt; without it the first")
    add_conversation_arguments(parser)
    add_option(parser, "--other-user", metavar="TEXT", help="the second side's: what its user says in place of --user")
    _add_explained_arguments(parser.add_argument_group("what is compared (default: each side's own next token)"))
    add_intervention_arguments(parser)
    add_flag(parser, "--freeze-scale", help="read the changed pass with the final norm's scale of the unchanged one")
    add_flag(parser, "--every-head", help="zero every head in turn instead, and show what that does to the prediction")
    group = parser.add_argument_group("how much is returned")
    add_option(
        group, "--top-k", kind=positive_number, default=10, metavar="N", help="neurons of each kind and direction"
    )
    add_option(
        group,
        "--projection-top-k",
        kind=whole_number,
        default=10,
        metavar="N",
        help="vocabulary tokens for each neuron",
    )
    add_flag(parser, "--json", help="print the comparison as JSON, and nothing else")
    add_report_argument(parser)
    add_connection_arguments(parser)
    add_option(parser, "--other-address", metavar="HOST:PORT", help="the service that answers for the second side")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    _check(arguments)
    if arguments.every_head:
        effects = _effects(arguments)
        print(plain_json(effects) if arguments.json else "\n".join(head_effect_lines(effects, arguments.top_k)))
        return 0
    comparison = _compare(arguments)
    if arguments.report is not None:
        write_report(arguments.report, comparison.to_html())
    print(plain_json(comparison) if arguments.json else "\n".join(comparison_lines(comparison)))
    return 0


def _compare(arguments: argparse.Namespace) -> Comparison:
    with ExitStack() as stack:
        stack.enter_context(waiting("comparing"))
        client = stack.enter_context(connect(arguments))
        other = None
        if arguments.other_address is not None:
            elsewhere = argparse.Namespace(**{**vars(arguments), "address": arguments.other_address})
            other = stack.enter_context(connect(elsewhere))
        return client.compare(
            _prompt(arguments),
            _other_prompt(arguments),
            other=other,
            target=_token(arguments, "target"),
            contrast=_token(arguments, "contrast"),
            add_special_tokens=arguments.special_tokens,
            interventions=interventions_of(arguments),
            freeze_scale=arguments.freeze_scale,
            top_k=arguments.top_k,
            projection_top_k=arguments.projection_top_k,
            include_final_norm_bias=arguments.include_final_norm_bias,
        )


def _effects(arguments: argparse.Namespace) -> HeadEffects:
    with waiting("zeroing every head in turn"), connect(arguments) as client:
        return client.head_effects(
            _prompt(arguments), target=_token(arguments, "target"), add_special_tokens=arguments.special_tokens
        )


def _prompt(arguments: argparse.Namespace) -> str | Conversation:
    talk = conversation_of(arguments)
    if (arguments.text is None) == (talk is None):
        raise UsageError("give a TEXT or messages (--user, --messages), one of them")
    prompt: str | Conversation = arguments.text if talk is None else talk
    return prompt


def _other_prompt(arguments: argparse.Namespace) -> str | Conversation | None:
    if arguments.other_user is None:
        other: str | None = arguments.other_text
        return other
    return conversation_of(argparse.Namespace(**{**vars(arguments), "user": arguments.other_user}))


def _token(arguments: argparse.Namespace, name: str) -> str | int | None:
    text: str | None = getattr(arguments, name)
    id: int | None = getattr(arguments, f"{name}_id")
    return text if id is None else id


def _add_explained_arguments(group: argparse._ArgumentGroup) -> None:
    add_option(group, "--target", metavar="TEXT", help="explain this token on both sides: its exact text")
    add_option(group, "--target-id", kind=whole_number, metavar="ID", help="explain this token on both sides: its id")
    add_option(group, "--contrast", metavar="TEXT", help="explain the difference to this token")
    add_option(group, "--contrast-id", kind=whole_number, metavar="ID", help="explain the difference to this token")
    add_flag(group, "--include-final-norm-bias", help="make the final norm's bias part of every projection")
    add_switch(group, "--special-tokens", help="add the tokenizer's special tokens, or not (default: its own way)")


def _check(arguments: argparse.Namespace) -> None:
    _prompt(arguments)
    others = [arguments.other_text, arguments.other_user, arguments.other_address, *interventions_of(arguments)]
    given = any(other is not None for other in others)
    if arguments.every_head and (given or _token(arguments, "contrast") is not None):
        raise UsageError("--every-head takes one text, and no --other-address, intervention or contrast")
    if arguments.every_head and arguments.report is not None:
        raise UsageError("--report shows two sides; leave --every-head or --report out")
    if not (arguments.every_head or given):
        raise UsageError("nothing to compare with: give a second text, --other-address or an intervention")
    for flag in ("target", "contrast"):
        if getattr(arguments, flag) is not None and getattr(arguments, f"{flag}_id") is not None:
            raise UsageError(f"--{flag} and --{flag}-id exclude each other; give one of them")
