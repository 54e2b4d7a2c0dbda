"""Query scores: which components and which FFN neurons activate the value neurons.

Terms use neither centring, nor the norm's bias, nor the value bias.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from neuron_attribution.requests import Subkey
from neuron_attribution.results import ComponentKind
from torch import Tensor

from reference.oracle import AttentionKey, Explained, FfnKey

Component = tuple[ComponentKind, int]


@dataclass
class QueryScores:
    """Scores by component or FFN neuron.

    `magnification` is the largest a + Imp·a² of any source, where a = Σ|c·key| / |Σ c·key|: what rounding is
    multiplied by, the source's own score's by its terms' size, its divisor's by that size again.
    """

    scores: dict[Component, float] | dict[FfnKey, float]
    magnification: float = 0.0
    written: dict[FfnKey, float] = field(default_factory=dict)
    """Of FFN neurons: what they give at each position, without its sign, under the sign of their coefficient there."""

    def magnify(self, sizes: float, divisor: float, importance: float) -> None:
        """Take one source into account."""
        size = sizes / abs(divisor)
        self.magnification = max(self.magnification, size + abs(importance) * size**2)


def strongest(scores: Mapping[tuple[int, ...], float], count: int) -> list[tuple[int, ...]]:
    """The `count` highest keys, ties by key."""
    return sorted(scores, key=lambda key: (-scores[key], key))[:count]


def ffn_key(explained: Explained, layer: int, neuron: int, subkey: Subkey) -> Tensor:
    """The FFN neuron's key, seen through the weight of the norm before the FFN. [d]"""
    weights = explained.weights.layers[layer]
    rows = {Subkey.UP: weights.up, Subkey.GATE: weights.gate, Subkey.SUBVALUE: weights.down}[subkey]
    if rows is None:
        raise ValueError("the FFN has no gate")
    return rows[weights.unit(neuron)] * weights.ffn_norm.weight


def attention_key(explained: Explained, layer: int, head: int, k: int) -> Tensor:
    """The attention neuron's key, seen through the weight of the norm before attention. [d]"""
    return explained.weights.value_rows(layer, head)[k] * explained.weights.layers[layer].attention_norm.weight


def ffn_query_layers(
    explained: Explained, sources: Iterable[FfnKey], scores: Mapping[FfnKey, float], subkey: Subkey = Subkey.UP
) -> QueryScores:
    """Components at the explained position that activate FFN value neurons, {x_0, A_0, F_0, …, A_l} for layer l.

    Without A_l where the FFN does not read it.
    """
    result = QueryScores(dict.fromkeys(all_components(explained), 0.0))
    for layer, neuron in sources:
        components = list(components_before(explained, layer, explained.position))
        if explained.layers[layer].ffn_reads_attention:
            components.append(_attention(explained, layer))
        _share(result, components, ffn_key(explained, layer, neuron, subkey), scores[layer, neuron])
    return result


def attention_query_layers(
    explained: Explained, sources: Iterable[AttentionKey], scores: Mapping[AttentionKey, float]
) -> QueryScores:
    """Components at each neuron's own position that activate attention value neurons, {x_0, A_0, F_0, …, F_{l-1}}."""
    result = QueryScores(dict.fromkeys(all_components(explained), 0.0))
    for layer, head, k, position in sources:
        components = list(components_before(explained, explained.weights.values_of(layer), position))
        _share(result, components, attention_key(explained, layer, head, k), scores[layer, head, k, position])
    return result


def query_ffn_neurons(
    explained: Explained, sources: Iterable[AttentionKey], scores: Mapping[AttentionKey, float]
) -> QueryScores:
    """FFN neurons below each source that activate attention value neurons, with their coefficients at its position."""
    weights, states = explained.weights.layers, explained.layers
    found = [torch.zeros(len(layer.down), dtype=torch.float64) for layer in weights]
    read: dict[tuple[int, int], Tensor] = defaultdict(lambda: torch.zeros(1, dtype=torch.float64))
    result = QueryScores({})
    for layer, head, k, position in sources:
        key = attention_key(explained, layer, head, k)
        made = explained.weights.values_of(layer)
        divisor = states[made].input[position] @ key
        for lower in range(made):
            read_by_key = weights[lower].down @ key
            terms = states[lower].coefficients[position] * read_by_key
            found[lower] += terms / divisor * scores[layer, head, k, position]
            read[lower, position] = read[lower, position] + read_by_key / divisor * scores[layer, head, k, position]
            result.magnify(terms.abs().sum().item(), divisor.item(), scores[layer, head, k, position])
    written = [torch.zeros_like(layer) for layer in found]
    for (lower, position), given in read.items():
        written[lower] += states[lower].coefficients[position] * given.abs()
    result.scores, result.written = (
        {(i, weights[i].name(n)): value for i, layer in enumerate(layers) for n, value in enumerate(layer.tolist())}
        for layers in (found, written)
    )
    return result


def all_components(explained: Explained) -> list[Component]:
    """The embedding and every layer's attention and FFN, 2L + 1."""
    layers = range(len(explained.layers))
    kinds = (ComponentKind.ATTENTION, ComponentKind.FFN)
    return [(ComponentKind.EMBEDDING, 0), *((kind, layer) for layer in layers for kind in kinds)]


def components_before(explained: Explained, layer: int, position: int) -> Iterator[tuple[Component, Tensor]]:
    """{x_0, A_0, F_0, …, A_{l-1}, F_{l-1}} at `position`; they sum to x_l."""
    yield (ComponentKind.EMBEDDING, 0), explained.layers[0].input[position]
    for lower in range(layer):
        yield (ComponentKind.ATTENTION, lower), explained.layers[lower].attention[position]
        yield (ComponentKind.FFN, lower), explained.layers[lower].ffn[position]


def _attention(explained: Explained, layer: int) -> tuple[Component, Tensor]:
    return (ComponentKind.ATTENTION, layer), explained.layers[layer].attention[explained.position]


def _share(result: QueryScores, components: list[tuple[Component, Tensor]], key: Tensor, importance: float) -> None:
    terms = {component: (vector @ key).item() for component, vector in components}
    divisor = sum(terms.values())
    for component, term in terms.items():
        result.scores[component] += term / divisor * importance
    result.magnify(sum(map(abs, terms.values())), divisor, importance)
