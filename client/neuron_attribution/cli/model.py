"""`neuron-attribution model`: what is served."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.output import (
    Lines,
    add_output_arguments,
    facts,
    model_text,
    print_result,
    table,
    token_text,
)
from neuron_attribution.convert import model_info_to_proto
from neuron_attribution.results import ModelInfo, Token

_UNITS = {"maximum_wait": " seconds", "maximum_age": " seconds"}

HELP = "describe the served model, its limits and what was verified when it was loaded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_output_arguments(parser)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    with connect(arguments) as client:
        info = client.get_model()
    print_result(arguments, lambda: model_info_to_proto(info), lambda: model_lines(info))
    return 0


def model_lines(info: ModelInfo) -> Lines:
    """The model for people."""
    return [
        *facts(_identity(info)),
        "",
        *_named_numbers("sizes", asdict(info.sizes)),
        "",
        *_named_numbers("limits", asdict(info.limits)),
        "",
        *table(
            "invariants measured at load",
            ("name", ">error", ">tolerance", "property"),
            [(item.name, f"{item.error:.1e}", f"{item.tolerance:.1e}", item.description) for item in info.invariants],
        ),
    ]


def _identity(info: ModelInfo) -> list[tuple[str, str]]:
    exactness = "exact" if info.exactness.exact else "not guaranteed to be exact"
    return [
        ("model", model_text(info.model)),
        ("family", info.family),
        ("device", info.device),
        ("parts", ", ".join(part.value for part in info.supported_parts)),
        ("rankings", f"{exactness}: {info.exactness.explanation}"),
        ("special tokens", _special_tokens(info)),
        ("service", info.version),
    ]


def _special_tokens(info: ModelInfo) -> str:
    default = "added by default" if info.tokenizer.adds_special_tokens else "not added by default"
    return f"{default}; before: {_tokens(info.tokenizer.prefix)}; after: {_tokens(info.tokenizer.suffix)}"


def _tokens(tokens: Sequence[Token]) -> str:
    return " ".join(token_text(token) for token in tokens) or "none"


def _named_numbers(title: str, values: dict[str, float]) -> Lines:
    width = max(map(len, values))
    return [
        title,
        *(
            f"  {name.replace('_', ' ').ljust(width)}  {value:>12,}{_UNITS.get(name, '')}"
            for name, value in values.items()
        ),
    ]
