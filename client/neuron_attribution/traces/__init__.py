"""Graphs of predictions, from the output back to the prompt's tokens: what is asked, and what comes back.

May import requests, results, conversations and rendering.
"""

from neuron_attribution.traces.answer import Trace
from neuron_attribution.traces.asked import DEFAULT_NODES, MOST_EDGES, SCREENED_PER_NODE, TraceOptions, TraceRequest
from neuron_attribution.traces.graph import Graph, TraceCoverage, TraceEdge, TraceNode, TraceNodeKind, TracePath

__all__ = [
    "DEFAULT_NODES",
    "MOST_EDGES",
    "SCREENED_PER_NODE",
    "Graph",
    "Trace",
    "TraceCoverage",
    "TraceEdge",
    "TraceNode",
    "TraceNodeKind",
    "TraceOptions",
    "TracePath",
    "TraceRequest",
]
