"""`neuron-attribution evaluate`: the paper's protocol on a file of facts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from neuron_attribution.cli.connection import add_connection_arguments, connect
from neuron_attribution.cli.options import SOME_FAILED, UsageError, add_option, positive_number, whole_number
from neuron_attribution.cli.output import add_output_arguments
from neuron_attribution.evaluation.facts import FactsError, read_facts
from neuron_attribution.evaluation.report import markdown
from neuron_attribution.evaluation.run import chosen_facts, evaluate

HELP = "evaluate the eight scoring methods on facts, as the paper does: take neurons away and predict again"
EXAMPLE = "evaluate facts.jsonl --output results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = f"The exit status is {SOME_FAILED} where all was done but some facts have failed."
    parser.add_argument(
        "facts", metavar="FACTS.jsonl", help="one JSON object a line: prompt; answer or attribute; type or relation_id"
    )
    add_option(
        parser,
        "--output",
        required=True,
        metavar="FOLDER",
        help="where results.jsonl, report.md and report.json are written; an evaluation that is there goes on",
    )
    add_option(parser, "--limit", kind=positive_number, metavar="N", help="evaluate a sample of N facts (default: all)")
    add_option(
        parser, "--seed", kind=whole_number, default=0, metavar="N", help="of the sample and of the random neurons"
    )
    add_output_arguments(parser)
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the report."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        raise UsageError("evaluate needs tqdm: pip install 'neuron-attribution[evaluate]'") from None
    try:
        facts = read_facts(Path(arguments.facts))
        total = len(chosen_facts(facts, arguments.limit, arguments.seed))
        with connect(arguments) as client, tqdm(total=total, unit="fact") as bar:
            report = evaluate(
                client,
                facts,
                Path(arguments.output),
                limit=arguments.limit,
                seed=arguments.seed,
                progressed=bar.update,
            )
    except FactsError as error:
        raise UsageError(str(error)) from None
    print(json.dumps(report) if arguments.json else markdown(report))
    failed = report["facts"].get("failed", 0)
    if failed:
        print(f"{failed} facts have failed; the same command tries them again", file=sys.stderr)
    return SOME_FAILED if failed else 0
