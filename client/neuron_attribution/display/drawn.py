"""A result's tables under its summary, as each medium has them."""

from __future__ import annotations

from rich.console import RenderableType

from neuron_attribution.display.html import html_text
from neuron_attribution.display.rich_text import group
from neuron_attribution.display.summaries import summary
from neuron_attribution.display.tables import tables


def rich_tables(result: object) -> RenderableType:
    """For a terminal."""
    return group(summary(result), tables(result))


def html_tables(result: object) -> str:
    """For a notebook."""
    return html_text(summary(result), tables(result))
