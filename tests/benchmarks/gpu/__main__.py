"""Runs the tests and the benchmark of a GPU and writes docs/benchmarks-gpu.md; without one, what can be counted."""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from benchmarks.gpu.page import Budget, Page, fill
from benchmarks.gpu.plan import SHAPES, counted_only, everything

TITLE = "# Benchmarks: on a GPU"
COMMAND = "make gpu"
NOT_RUN = (
    f"**Nothing here was measured: no run on a GPU has been made yet.** `{COMMAND}` makes one on a machine that has "
    "one: it runs the tests that need a GPU, measures explanations beside the plain forward pass of a Llama-7B and a "
    "Llama-3-8B of random weights, and writes this page. Without a GPU it writes what follows: operations that were "
    "counted on a CPU, and what is predicted from them."
)
MEASURED = (
    f"Written by `{COMMAND}`: measured numbers, none by hand, but for what is said to be predicted. Models have random "
    "weights, made on the device: rankings say nothing, and a trained model may have more or fewer neurons scored."
)


def main(arguments=None):
    options = _parser().parse_args(arguments)
    page, budget = Page(options.output), Budget(options.seconds)
    device = options.device or ("cuda" if torch.cuda.is_available() else None)
    if device is None and options.output.is_file() and MEASURED in options.output.read_text():
        print(f"{options.output} has numbers of a GPU, and here is none: name another --output", file=sys.stderr)
        return 1
    page.add("\n\n".join([TITLE, NOT_RUN if device is None else MEASURED]))
    command = shlex.join(["make", "gpu", f"GPU={shlex.join(sys.argv[1:])}"]) if sys.argv[1:] else COMMAND
    fill(page, counted_only(options) if device is None else everything(options, device, command, page), budget)
    return 1 if page.failed else 0


def _parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="where to measure (default cuda, if there is a GPU)")
    parser.add_argument("--shapes", nargs="+", choices=("tiny", *SHAPES), default=SHAPES, help="which models")
    parser.add_argument("--seconds", type=float, default=540, help="when to stop, whatever is left (default 540)")
    parser.add_argument("--section-seconds", type=float, default=30, help="how long to repeat one section's (30)")
    parser.add_argument("--threads", type=int, default=8, help="CPU threads (default 8)")
    parser.add_argument("--layers", nargs="+", type=int, default=(4, 16, 32), help="of the models that are counted")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks-gpu.md"), help="the Markdown file")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
