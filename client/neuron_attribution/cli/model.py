"""`neuron-attribution model`: what is served, or with `--check` whether a model could be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import add_option
from neuron_attribution.cli.output import (
    Lines,
    add_output_arguments,
    facts,
    model_text,
    print_result,
    table,
    token_text,
)
from neuron_attribution.cli.serve import server_module
from neuron_attribution.convert import model_info_to_proto
from neuron_attribution.results import ModelInfo, Token

_UNITS = {"maximum_wait": " seconds", "maximum_age": " seconds"}

HELP = "describe the served model, its limits and what was verified when it was loaded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_option(
        parser,
        "--check",
        metavar="MODEL",
        help="load this model here (demo, a Hub id, a folder, or a GGUF file), measure what the method assumes of it, "
        "and serve nothing; loading takes the settings of serve from the environment",
    )
    add_output_arguments(parser)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, or measure, and print."""
    info = _served(arguments) if arguments.check is None else _checked(arguments.check)
    print_result(arguments, lambda: model_info_to_proto(info), lambda: model_lines(info))
    return 0


def _served(arguments: argparse.Namespace) -> ModelInfo:
    with connect(arguments) as client:
        return client.get_model()


def _checked(model: str) -> ModelInfo:
    info: ModelInfo = server_module("check").check_model(model)
    return info


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
