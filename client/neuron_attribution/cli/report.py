"""The option that writes an HTML page beside what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_attribution.cli.options import UsageError, add_option


def add_report_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    add_option(parser, "--report", metavar="FILE", help="write an HTML page with charts there")


def write_report(path: str, page: str) -> None:
    """Write the page."""
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the report cannot be written: {error}") from error
