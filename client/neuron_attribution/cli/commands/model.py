"""`neuron-attribution model`: what is served, or with `--check` whether a model could be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress

from neuron_attribution.cli.commands.serve import MissingExtraError, server_module, server_settings
from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import add_option
from neuron_attribution.cli.output import (
    Lines,
    add_output_arguments,
    facts,
    model_text,
    print_result,
    text_tables,
    token_text,
)
from neuron_attribution.cli.waiting import waiting
from neuron_attribution.convert import model_info_to_proto
from neuron_attribution.display.records import records
from neuron_attribution.display.tables import tables
from neuron_attribution.results import ModelInfo, Token

HELP = "describe the served model, its limits and what was verified when it was loaded"
EXAMPLE = "model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_option(
        parser,
        "--check",
        metavar="MODEL",
        help="load this model here (demo, a Hub id, a folder, or a GGUF file), measure what the method assumes of it, "
        "and serve nothing",
    )
    with suppress(MissingExtraError):
        server_settings().add_loading_arguments(parser)
    add_output_arguments(parser, csv=True)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, or measure, and print."""
    info = _served(arguments) if arguments.check is None else _checked(arguments)
    print_result(arguments, lambda: model_info_to_proto(info), lambda: model_lines(info), lambda: records(info))
    return 0


def _served(arguments: argparse.Namespace) -> ModelInfo:
    with waiting("asking"), connect(arguments) as client:
        return client.get_model()


def _checked(arguments: argparse.Namespace) -> ModelInfo:
    with waiting(f"loading and measuring {arguments.check}"):
        check = server_module("check")
        flags = {name: getattr(arguments, name) for name in server_settings().loading_settings()}
        info: ModelInfo = check.check_model(arguments.check, flags)
    return info


def model_lines(info: ModelInfo) -> Lines:
    """The model for people."""
    return [*facts(_identity(info)), "", *text_tables(tables(info))]


def _identity(info: ModelInfo) -> list[tuple[str, str]]:
    exactness = "exact" if info.exactness.exact else "not guaranteed to be exact"
    ready = [("decreases", f"{info.ranges_ready:.0%} of what bounds them is ready")] if info.ranges_ready else []
    return [
        ("model", model_text(info.model)),
        ("family", info.family),
        ("device", info.device),
        ("parts", ", ".join(part.value for part in info.supported_parts)),
        ("rankings", f"{exactness}: {info.exactness.explanation}"),
        *ready,
        *([("tracing", f"refused: {info.untraceable}")] if info.untraceable else []),
        ("special tokens", _special_tokens(info)),
        ("chat template", _chat_templates(info)),
        ("service", info.version),
    ]


def _special_tokens(info: ModelInfo) -> str:
    default = "added by default" if info.tokenizer.adds_special_tokens else "not added by default"
    return f"{default}; before: {_tokens(info.tokenizer.prefix)}; after: {_tokens(info.tokenizer.suffix)}"


def _chat_templates(info: ModelInfo) -> str:
    if not info.tokenizer.chat_template:
        return "none: prompts are texts or token ids"
    return ", ".join(info.tokenizer.chat_templates) or "one"


def _tokens(tokens: Sequence[Token]) -> str:
    return " ".join(token_text(token) for token in tokens) or "none"
