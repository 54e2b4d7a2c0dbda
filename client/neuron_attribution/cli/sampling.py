"""Sampling on the command line: `--generate 20 --temperature 0.7 --top-p 0.9 --seed 1`."""

from __future__ import annotations

import argparse

from neuron_attribution.cli.options import add_option, whole_number
from neuron_attribution.generation import FinishReason, Generation, Sampling

_NAMES = {"temperature": "temperature", "top_p": "top_p", "sample_top_k": "top_k", "seed": "seed"}
"""The options, and the fields that they are."""


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how tokens are drawn."""
    group = parser.add_argument_group("how tokens are generated (default: the most probable one each time)")
    add_option(group, "--temperature", kind=float, metavar="T", help="draw tokens, with logits divided by T")
    add_option(
        group, "--top-p", kind=float, metavar="P", help="draw from the most probable tokens that reach P together"
    )
    add_option(group, "--sample-top-k", kind=whole_number, metavar="K", help="draw from the K most probable tokens")
    add_option(group, "--seed", kind=whole_number, metavar="N", help="draw the same tokens again")


def sampling_of(arguments: argparse.Namespace) -> Sampling | None:
    """What the options ask for; None where none of them is given."""
    given = {field: getattr(arguments, option) for option, field in _NAMES.items()}
    given = {field: value for field, value in given.items() if value is not None}
    return Sampling(**given) if given else None


def generation_text(generation: Generation) -> str:
    """How a generation ended, for people."""
    ended = generation.finish_reason is FinishReason.STOP
    text = "the model ended its text" if ended else "as many tokens as were asked for"
    return text if generation.seed is None else f"{text}; drawn with --seed {generation.seed}"
