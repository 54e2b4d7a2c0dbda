"""`neuron-attribution intervene`: what a prediction becomes when neurons are changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from neuron_attribution.cli.attribution_text import timings_text
from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.interventions import (
    add_intervention_arguments,
    confusable_texts,
    intervention_text,
    interventions_of,
    separate_interventions_of,
)
from neuron_attribution.cli.options import UsageError, add_flag, add_option, add_switch, whole_number
from neuron_attribution.cli.output import (
    Lines,
    add_output_arguments,
    facts,
    model_text,
    print_result,
    text_tables,
)
from neuron_attribution.cli.prompts import add_prompt_arguments, prompt_of
from neuron_attribution.cli.sampling import add_sampling_arguments, sampling_of
from neuron_attribution.cli.waiting import waiting
from neuron_attribution.convert import intervene_result_to_proto
from neuron_attribution.display.interventions import intervention_tables
from neuron_attribution.requests import Intervention, InterventionSet
from neuron_attribution.results import InterveneResult

HELP = "rerun a text with neurons, heads or layers changed, and compare the predictions"
EXAMPLE = 'intervene "The capital of France is" --zero 24.1005,23.h4'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_prompt_arguments(parser)
    add_intervention_arguments(parser)
    add_flag(parser, "--separately", help="rerun once for each NAME, instead of once with all of them changed")
    add_option(parser, "--target", metavar="TEXT", help="the next token to watch (default: the model's own)")
    add_option(parser, "--target-id", kind=whole_number, metavar="ID", help="the same by its id")
    add_option(parser, "--generate", kind=whole_number, default=0, metavar="N", help="generated tokens to compare")
    add_sampling_arguments(parser)
    add_flag(parser, "--freeze-scale", help="read what comes after with the final norm's scale of the unchanged pass")
    add_switch(parser, "--special-tokens", help="add the tokenizer's special tokens, or not (default: its own way)")
    add_output_arguments(parser)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Intervene and print."""
    prompt, sets = prompt_of(arguments), _sets(arguments)
    if arguments.target is not None and arguments.target_id is not None:
        raise UsageError("--target and --target-id exclude each other; give one of them")
    with waiting("intervening"), connect(arguments) as client:
        result = client.intervene(
            prompt,
            sets,
            target=arguments.target if arguments.target_id is None else arguments.target_id,
            generate=arguments.generate,
            sampling=sampling_of(arguments),
            add_special_tokens=arguments.special_tokens,
            freeze_scale=arguments.freeze_scale,
        )
    print_result(arguments, lambda: intervene_result_to_proto(result), lambda: intervention_lines(result, sets))
    return 0


def intervention_lines(result: InterveneResult, sets: Sequence[Sequence[Intervention]]) -> Lines:
    """The predictions before and after, for people."""
    names = ["before", *(" ".join(map(intervention_text, each)) for each in sets)]
    lines = text_tables(intervention_tables(result, names))
    notes = [("note", text) for text in confusable_texts(sets)]
    if (generation := result.before.generation) is not None and generation.seed is not None:
        notes.append(("drawn", f"with the same luck each time, --seed {generation.seed}"))
    return [*lines, "", *facts([*notes, ("model", model_text(result.model)), ("time", timings_text(result.timings))])]


def _sets(arguments: argparse.Namespace) -> tuple[InterventionSet, ...]:
    together = interventions_of(arguments)
    if not together:
        raise UsageError("nothing is changed; give --zero, --scale or --set")
    if arguments.separately:
        return tuple((each,) for each in separate_interventions_of(arguments))
    return (together,)
