"""`neuron-attribution analyze`: study a whole corpus of prompts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from neuron_attribution.analysis.corpus import Corpus
from neuron_attribution.cli.commands.serve import MissingExtraError, server_module
from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import (
    SOME_FAILED,
    UsageError,
    add_flag,
    add_option,
    comma_separated,
    enum_value,
    positive_number,
    whole_number,
)
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import AttributeOptions, Direction, Part, ScoringMethod

HELP = "study a whole corpus of prompts: a Parquet data set of explained predictions, and what they have in common"
EXAMPLE = "analyze prompts.jsonl --output study"
DEFAULTS = AttributeOptions(top_k=300, projection_top_k=5)
_SHARD_PROMPTS = 32
_NUMBERS = {
    "--top-k": "neurons in each ranking",
    "--head-top-k": "heads counted as the strongest",
    "--projection-top-k": "vocabulary tokens for each neuron",
    "--query-sources": "value neurons whose activation is traced",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "prompts",
        metavar="PROMPTS",
        type=Path,
        help="the corpus: .jsonl, .parquet, or .txt with a prompt a line",
    )
    parser.epilog = f"The exit status is {SOME_FAILED} where all was done but some prompts have failed."
    add_option(parser, "--output", kind=Path, metavar="FOLDER", required=True, help="the data set, begun or continued")
    add_flag(parser, "--retry-failed", help="explain the prompts again that have failed")
    add_flag(parser, "--own-predictions", help="explain the model's own next token, whatever the corpus names")
    _add_explanation_arguments(parser.add_argument_group("how prompts are explained"))
    _add_ray_arguments(parser.add_argument_group("on a Ray cluster instead of a running service"))
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Study, and say where it is."""
    study_module = _analysis_module("study")
    try:
        corpus = Corpus(arguments.prompts, _options(arguments), arguments.own_predictions)
        arguments.output.mkdir(parents=True, exist_ok=True)
    except (InvalidArgumentError, OSError) as error:
        raise UsageError(str(error)) from error
    study = study_module.Study(
        corpus=corpus,
        folder=arguments.output,
        shard_prompts=arguments.shard_prompts,
        retry_failed=arguments.retry_failed,
    )
    failed: int = _on_ray(arguments, study) if arguments.ray is not None else _through_the_service(arguments, study)
    print(f"{arguments.output / 'summary.md'}")
    if failed:
        print(f"{failed} prompts have failed; --retry-failed tries them again", file=sys.stderr)
    return SOME_FAILED if failed else 0


def _through_the_service(arguments: argparse.Namespace, study: Any) -> int:  # noqa: ANN401 - a Study, of an extra
    service = _analysis_module("service")
    with connect(arguments) as client:
        backend = service.ServiceBackend(client)
        info = backend.describe()
        failed: int = study.run(backend, info.model, {"server": info.version})
    return failed


def _on_ray(arguments: argparse.Namespace, study: Any) -> int:  # noqa: ANN401 - a Study, of an extra
    if arguments.model is None:
        raise UsageError("--ray needs --model")
    backend = server_module("corpus.ray_backend", "analyze", "ray").ray_backend(
        arguments.ray,
        actors=arguments.actors,
        batch_prompts=arguments.batch_prompts,
        model=arguments.model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
    )
    with backend:
        failed: int = study.run(backend, None, {"ray": backend.version})
    return failed


def _analysis_module(name: str) -> ModuleType:
    try:
        return import_module(f"neuron_attribution.analysis.{name}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("neuron_attribution"):
            raise
        raise MissingExtraError(error.name, "analyze", "analysis") from error


def _add_explanation_arguments(group: argparse._ArgumentGroup) -> None:
    for flag, help in _NUMBERS.items():
        default = getattr(DEFAULTS, flag.lstrip("-").replace("-", "_"))
        reader = whole_number if flag == "--projection-top-k" else positive_number
        add_option(group, flag, kind=reader, default=default, metavar="N", help=help)
    parts = comma_separated(enum_value(Part))
    _add_names(group, "--parts", parts, DEFAULTS.parts, Part, "the parts to compute, of", shown="all")
    direction, method = DEFAULTS.direction, DEFAULTS.scoring_method
    _add_names(group, "--direction", enum_value(Direction), direction, Direction, "the end of the rankings to keep:")
    _add_names(group, "--method", enum_value(ScoringMethod), method, ScoringMethod, "the score of value neurons:")
    add_option(
        group,
        "--shard-prompts",
        kind=positive_number,
        default=_SHARD_PROMPTS,
        metavar="N",
        help="prompts written together; what is not yet written is lost when the study is killed",
    )


def _add_names(
    group: argparse._ArgumentGroup,
    flag: str,
    reader: Callable[[str], object],
    default: object,
    names: type[Enum],
    help: str,
    shown: str | None = None,
) -> None:
    text = f"{help} {', '.join(str(member.value) for member in names)}"
    add_option(group, flag, kind=reader, default=default, shown=shown, metavar="NAME", help=text)


def _add_ray_arguments(group: argparse._ArgumentGroup) -> None:
    add_option(group, "--ray", metavar="ADDRESS", help="local, auto (this machine's cluster), or an address")
    add_option(group, "--model", metavar="MODEL", help="demo, a Hub id, a folder, or a GGUF file, seen by every node")
    add_option(group, "--revision", metavar="REVISION", help="the revision of a model from the Hub")
    add_option(group, "--dtype", default="auto", metavar="TYPE", help="auto, float32, float16 or bfloat16")
    add_option(group, "--device", default="auto", metavar="DEVICE", help="auto, cpu, or cuda: one GPU for each actor")
    add_option(group, "--threads", kind=positive_number, metavar="N", help="CPU threads of each actor")
    add_option(
        group,
        "--actors",
        kind=positive_number,
        metavar="N",
        help="processes that hold the model (default: one for each GPU of the cluster, or one)",
    )
    add_option(group, "--batch-prompts", kind=positive_number, default=32, metavar="N", help="prompts of one batch")


def _options(arguments: argparse.Namespace) -> AttributeOptions:
    return replace(
        DEFAULTS,
        parts=frozenset(arguments.parts),
        top_k=arguments.top_k,
        head_top_k=arguments.head_top_k,
        projection_top_k=arguments.projection_top_k,
        query_sources=arguments.query_sources,
        direction=arguments.direction,
        scoring_method=arguments.method,
    )
