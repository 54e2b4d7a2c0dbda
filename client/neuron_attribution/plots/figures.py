"""The figures: each draws on the axes it is given, or on those of a new figure, and returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from neuron_attribution.display.attributions import component_name
from neuron_attribution.display.extras import needs_extra
from neuron_attribution.display.words import place
from neuron_attribution.results import (
    ComponentKind,
    Explanation,
    HeadScore,
    LayerScores,
    NeuronRanking,
    NeuronScore,
    QueryLayers,
    Token,
)

with needs_extra("plot", "plots"):
    from matplotlib import pyplot
    from matplotlib.axes import Axes

ATTENTION = "salmon"
FFN = "seagreen"
EMBEDDING = "slategrey"
COLOURS = {ComponentKind.ATTENTION: ATTENTION, ComponentKind.FFN: FFN, ComponentKind.EMBEDDING: EMBEDDING}
LINES = {"FFN value": FFN, "attention value": ATTENTION, "FFN query": "mediumpurple"}
SCORE = "log probability increase"

Neurons = NeuronRanking | Sequence[NeuronScore]


def layers(scores: Explanation | LayerScores, *, ax: Axes | None = None) -> Axes:
    """Bars: what each layer's attention and FFN add to the log probability."""
    found = scores.layers if isinstance(scores, Explanation) else scores
    if found is None:
        raise ValueError("the explanation has no layers: ask for the part 'layers'")
    ax = _axes(ax)
    numbers = np.arange(len(found.ffn))
    ax.bar(numbers - 0.2, found.attention, 0.4, color=ATTENTION, label="attention")
    ax.bar(numbers + 0.2, found.ffn, 0.4, color=FFN, label="FFN")
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set(xlabel="layer", ylabel=SCORE)
    ax.legend()
    return ax


def heads(scores: Explanation | NDArray[np.float32], *, ax: Axes | None = None) -> Axes:
    """A heat map: what each head of each layer adds. Red raises the target, blue lowers it; layers without are grey."""
    found = scores.head_scores if isinstance(scores, Explanation) else scores
    if found is None:
        raise ValueError("the explanation has no head scores: ask for the part 'heads'")
    ax = _axes(ax)
    limit = float(np.nanmax(np.abs(found))) or 1.0
    ax.set_facecolor("lightgrey")
    image = ax.imshow(found.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    ax.set(xlabel="layer", ylabel="head")
    ax.figure.colorbar(image, ax=ax, label=SCORE)
    return ax


def neuron_layers(
    neurons: Explanation | Mapping[str, Neurons], *, layer_count: int | None = None, ax: Axes | None = None
) -> Axes:
    """Lines: how many neurons of each ranking lie in each layer.

    Of an explanation these are its FFN value, attention value and query FFN neurons; other rankings come by name.
    """
    rankings = _rankings(neurons) if isinstance(neurons, Explanation) else neurons
    if layer_count is None and isinstance(neurons, Explanation) and neurons.layers is not None:
        layer_count = len(neurons.layers.ffn)
    numbers = {name: [score.neuron.layer for score in _scores(found)] for name, found in rankings.items()}
    count = layer_count or 1 + max((layer for found in numbers.values() for layer in found), default=0)
    ax = _axes(ax)
    for name, found in numbers.items():
        label = f"{name} ({len(found)})"
        ax.plot(np.bincount(found, minlength=count), label=label, color=LINES.get(name), marker=".")
    ax.set(xlabel="layer", ylabel="neurons")
    ax.legend()
    return ax


def query_layers(scores: QueryLayers, *, top: int = 20, ax: Axes | None = None) -> Axes:
    """Bars: the layers that activate the strongest value neurons, strongest first."""
    ax = _axes(ax)
    strongest = scores.layers[:top]
    numbers = range(len(strongest))
    ax.bar(numbers, [item.score for item in strongest], color=[COLOURS[item.kind] for item in strongest])
    ax.set_xticks(numbers, [component_name(item) for item in strongest], rotation=60, ha="right")
    ax.set(ylabel="query score")
    return ax


def head_positions(head: HeadScore, tokens: Sequence[Token] = (), *, ax: Axes | None = None) -> Axes:
    """Bars: what a head brings from each source position, and how much attention it pays to it."""
    ax = _axes(ax)
    numbers = np.arange(len(head.position_scores))
    ax.bar(numbers - 0.2, head.position_scores, 0.4, color=ATTENTION, label=SCORE)
    ax.bar(numbers + 0.2, head.attention_weights, 0.4, color="lightgrey", label="attention weight")
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set_xticks(numbers, [_plain(place(int(number), tokens)) for number in numbers], rotation=60, ha="right")
    ax.set(title=f"head {head.head}")
    ax.legend()
    return ax


def _axes(ax: Axes | None) -> Axes:
    return pyplot.subplots(layout="constrained")[1] if ax is None else ax


def _rankings(explanation: Explanation) -> dict[str, Neurons]:
    named = {
        "FFN value": explanation.ffn_value_neurons,
        "attention value": explanation.attention_value_neurons,
        "FFN query": explanation.query_ffn_neurons,
    }
    return {name: ranking for name, ranking in named.items() if ranking is not None}


def _scores(neurons: Neurons) -> Sequence[NeuronScore]:
    return neurons.neurons if isinstance(neurons, NeuronRanking) else neurons


def _plain(text: str) -> str:
    """A dollar sign would begin a formula."""
    return text.replace("$", r"\$")
