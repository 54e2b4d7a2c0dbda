"""A trace as an HTML page."""

from __future__ import annotations

import json

from neuron_attribution.convert.graphs.answers import trace_json
from neuron_attribution.display.traces import trace_tables
from neuron_attribution.report.page import page
from neuron_attribution.report.tables import table
from neuron_attribution.traces import Trace


def trace_page(trace: Trace) -> str:
    """The whole page."""
    targets = repr("".join(target.token.text for target in trace.graph.targets))
    text = "".join(table(each.title, each.names, each.rows) for each in trace_tables(trace))
    return page(f"What carried {targets}?", "trace", {"result": json.loads(trace_json(trace))}, text)
