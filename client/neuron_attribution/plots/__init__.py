"""Pictures of results, in the paper's colours: attention salmon, FFN sea green. Needs the extra `plot`.

Every function draws on the axes it is given, or on those of a new figure, and returns them:

    from neuron_attribution import plots

    plots.layers(explanation).figure.savefig("layers.pdf")

May import the data and what is shown of it.
"""

from neuron_attribution.plots.figures import (
    ATTENTION,
    COLOURS,
    EMBEDDING,
    FFN,
    LINES,
    SCORE,
    head_positions,
    heads,
    layers,
    neuron_layers,
    query_layers,
)

__all__ = [
    "ATTENTION",
    "COLOURS",
    "EMBEDDING",
    "FFN",
    "LINES",
    "SCORE",
    "head_positions",
    "heads",
    "layers",
    "neuron_layers",
    "query_layers",
]
