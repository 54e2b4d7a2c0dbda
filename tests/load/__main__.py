"""Puts load on a service and tells what callers see: `make load LOAD='--rate 5 --seconds 60'`.

Callers come at random, independent of the answers; latency counts from when each was due. Without an address the demo
model is served for the time of the run, with no cache. Clients try again as the project's client does, so a status is
that of the last attempt, and a latency includes all of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from neuron_attribution import AsyncClient, NeuronAttributionError
from neuron_attribution.cli.connection import add_connection_arguments, connect_as
from neuron_attribution.cli.options import UsageError, argument_type, positive_seconds
from service.demo_server import serving

from load import capacity, page, plot, report
from load.mix import MIX, Mix, MixError, read_mix
from load.study import Plan, study
from load.target import Target


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        mix = _mix(arguments)
        if arguments.page:
            _write_page(arguments, mix)
            return 0
        with _address(arguments) as arguments.address:
            _report(arguments, Target(lambda: connect_as(AsyncClient, arguments), mix, _generator(arguments)))
    except (MixError, UsageError) as error:
        parser.error(str(error))
    except NeuronAttributionError as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    return 0


def _write_page(arguments: argparse.Namespace, mix: Mix) -> None:
    plan = Plan(arguments.seconds, arguments.rounds, capacity.Bounds(arguments.p99, arguments.failed))
    page.write(arguments.page, page.MODELLED, page.modelled())
    page.write(arguments.page, page.MEASURED, page.measured(study(plan, mix, _generator(arguments)), plan))


def _report(arguments: argparse.Namespace, target: Target) -> None:
    found = _conditions(arguments, target)
    text = (_search if arguments.capacity else _run)(arguments, target)
    document = f"# Load\n\n{report.conditions(found)}\n\n{text}\n"
    print(document)
    if arguments.output:
        arguments.output.write_text(document)


def _run(arguments: argparse.Namespace, target: Target) -> str:
    summary = target.run(arguments.rate, arguments.seconds)
    if arguments.plot:
        plot.run(summary, target.mix.kinds, arguments.plot)
    return report.run(summary, target.mix.kinds)


def _search(arguments: argparse.Namespace, target: Target) -> str:
    bounds = capacity.Bounds(arguments.p99, arguments.failed)
    steps = capacity.search(lambda rate: target.run(rate, arguments.seconds), arguments.rate, bounds, arguments.seconds)
    if arguments.plot:
        plot.search(steps, bounds.p99, arguments.plot)
    return report.search(steps, bounds)


def _conditions(arguments: argparse.Namespace, target: Target) -> dict[str, object]:
    info = target.warm_up()
    sizes = info.sizes
    return {
        "model": f"{info.model.name}: {sizes.layers} layers, {sizes.heads} heads, d {sizes.hidden_size}, "
        f"FFN {sizes.ffn_width}, vocabulary {sizes.vocabulary}",
        "dtype and device": f"{info.model.dtype}, {info.device}",
        "server": "on this machine, beside the load" if arguments.is_own else arguments.address,
        "cores here": os.cpu_count(),
        "requests": "; ".join(f"{kind.weight:g} {kind.name}" for kind in target.mix.kinds),
        "arrivals": f"Poisson, {arguments.seconds:g} s a run, seed {arguments.seed}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


@contextmanager
def _address(arguments: argparse.Namespace) -> Iterator[str]:
    arguments.is_own = arguments.address is None
    if not arguments.is_own:
        yield arguments.address
        return
    with serving() as (address, _):
        yield address


def _mix(arguments: argparse.Namespace) -> Mix:
    mix = read_mix(arguments.mix)
    return mix.only(tuple(arguments.only)) if arguments.only else mix


def _generator(arguments: argparse.Namespace) -> np.random.Generator:
    return np.random.default_rng(arguments.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    positive = argument_type(positive_seconds)
    parser.add_argument("--rate", type=positive, default=1.0, help="calls a second, where a search starts (default 1)")
    parser.add_argument("--seconds", type=positive, default=60.0, help="how long callers come (default 60)")
    parser.add_argument("--mix", type=Path, default=MIX, metavar="FILE", help="what they ask, TOML (default mix.toml)")
    parser.add_argument("--only", action="append", metavar="KIND", help="this kind of the mix; may be given again")
    parser.add_argument("--seed", type=int, default=0, help="decides all chance (default 0)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="Markdown file for what is also printed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture of the run: .svg, .png or .pdf")
    search = parser.add_argument_group("capacity")
    search.add_argument("--capacity", action="store_true", help="raise the rate until a bound is exceeded")
    search.add_argument("--p99", type=positive, default=5.0, help="most seconds of 99%% of the answers (default 5)")
    search.add_argument("--failed", type=float, default=0.01, help="largest part of failed calls (default 0.01)")
    search.add_argument("--page", type=Path, metavar="FILE", help="measure docs/capacity.md's tables anew, into FILE")
    search.add_argument(
        "--rounds", type=int, default=3, help="how often each of the page's points is measured (default 3)"
    )
    add_connection_arguments(parser, address=None)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
