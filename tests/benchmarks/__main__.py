"""The benchmark's command line: measures, then writes one Markdown file."""

import argparse
from pathlib import Path


def main(arguments=None):
    from benchmarks import markdown, run

    options = _parser().parse_args(arguments)
    if options.only:
        section = run.ONLY[options.only](options)
        options.output.write_text(markdown.replaced(options.output.read_text(), section))
        return 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = []
    for section in run.demo(options) if options.shape == "demo" else run.shape(options):
        done.append(section)
        options.output.write_text("\n\n".join(done) + "\n")  # what is measured survives what fails later
    return 0


def _parser():
    from benchmarks.subject import SHAPES

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shape", choices=("demo", *SHAPES), default="demo", help="which model (default demo)")
    parser.add_argument("--device", default="cpu", help="where a shape runs, cpu or cuda (default cpu)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--quick", action="store_true", help="a reduced run, to see that everything works")
    parser.add_argument("--only", choices=("comparison", "floor", "service", "explained"), help="one section")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"), help="the Markdown file")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
