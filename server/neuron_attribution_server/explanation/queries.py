"""What activates the strongest value neurons of one row: query layers and query FFN neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron
from neuron_attribution.requests import Subkey
from neuron_attribution.results import (
    ComponentKind,
    Coverage,
    NeuronRanking,
    NeuronScore,
    QueryLayer,
    QueryLayers,
)
from torch import Tensor

from neuron_attribution_server.architectures.model_view import ModelView
from neuron_attribution_server.attribution.query_scores import (
    ComponentScores,
    component_scores,
    query_ffn_scores,
    scaled_keys,
)
from neuron_attribution_server.attribution.ranking import all_scored
from neuron_attribution_server.captured import CapturedStates
from neuron_attribution_server.explanation.keys import attention_keys, ffn_keys
from neuron_attribution_server.explanation.rows import Row, components
from neuron_attribution_server.explanation.value_rankings import Source


class Queries:
    """The query scores of one row."""

    def __init__(self, view: ModelView, captured: CapturedStates, row: Row) -> None:
        self._view = view
        self._captured = captured
        self._row = row

    def ffn_layers(self, sources: Sequence[Source], subkey: Subkey) -> QueryLayers:
        """What activates FFN value neurons: components up to their own layer's attention, at the explained position."""
        neurons = [cast(FfnNeuron, source.neuron) for source in sources]
        visible = [2 * neuron.layer + 2 for neuron in neurons]
        return self._layers(sources, ffn_keys(self._view, neurons, subkey), visible)

    def attention_layers(self, sources: Sequence[Source]) -> QueryLayers:
        """What activates attention value neurons: the components below their layer, at their own position."""
        neurons = [cast(AttentionNeuron, source.neuron) for source in sources]
        visible = [2 * neuron.layer + 1 for neuron in neurons]
        return self._layers(sources, attention_keys(self._view, neurons), visible)

    def ffn_neurons(self, sources: Sequence[Source], k: int, signs: Sequence[int]) -> list[NeuronRanking]:
        """The FFN neurons that activate attention value neurons most (sign 1) and least (-1)."""
        scores = self._ffn_scores(sources)
        return [_ranking(self._view, scores, k, sign) for sign in signs]

    def _layers(self, sources: Sequence[Source], keys: Tensor, visible: Sequence[int]) -> QueryLayers:
        device = keys.device
        positions, which = self._positions(sources)
        states = components(self._captured, self._row.sequence, positions)[which]
        scores = torch.tensor([source.score for source in sources], device=device)
        return _query_layers(component_scores(states, keys, torch.tensor(visible, device=device), scores), len(sources))

    def _ffn_scores(self, sources: Sequence[Source]) -> Tensor:
        """Query scores of every FFN neuron, [L, N]."""
        neurons = [cast(AttentionNeuron, source.neuron) for source in sources]
        keys = attention_keys(self._view, neurons)
        positions, which = self._positions(sources)
        layers = torch.tensor([neuron.layer for neuron in neurons], device=keys.device)
        inputs = self._inputs([neuron.layer for neuron in neurons], positions[which])
        scores = torch.tensor([source.score for source in sources], device=keys.device)
        scaled, _ = scaled_keys(keys, inputs, scores)
        below = int(layers.max())
        return query_ffn_scores(
            [layer.ffn_subvalues for layer in self._view.layers],
            self._coefficients(positions, below),
            scaled,
            which,
            layers,
        )

    def _positions(self, sources: Sequence[Source]) -> tuple[Tensor, Tensor]:
        """The distinct positions of sources, and which of them each source has."""
        positions = torch.tensor([source.position for source in sources], device=self._view.device)
        distinct: tuple[Tensor, Tensor] = positions.unique(return_inverse=True)
        return distinct

    def _inputs(self, layers: Sequence[int], positions: Tensor) -> Tensor:
        """x_l[p] of each source, [K, d]."""
        sequence = self._row.sequence
        pairs = zip(layers, positions.tolist(), strict=True)
        return torch.stack([self._captured.inputs[layer][sequence, position] for layer, position in pairs]).float()

    def _coefficients(self, positions: Tensor, below: int) -> list[Tensor]:
        """FFN coefficients of layers 0 ... below - 1 at a few positions, [P, N] each.

        Computed again from the residual stream: keeping them for every position would double what a token costs.
        """
        at = (self._row.sequence, positions)
        layers = [self._captured.ffn_coefficients(self._view, number, at) for number in range(below)]
        if self._captured.ffn_scales:
            layers = [
                layer / scales[at][:, None] for layer, scales in zip(layers, self._captured.ffn_scales, strict=False)
            ]
        return layers


def _query_layers(found: ComponentScores, count: int) -> QueryLayers:
    order = found.scores.sort(descending=True, stable=True)
    layers = tuple(
        _query_layer(index, score) for index, score in zip(order.indices.tolist(), order.values.tolist(), strict=True)
    )
    return QueryLayers(layers, count, found.skipped)


def _query_layer(component: int, score: float) -> QueryLayer:
    """Components count embedding, attention 0, FFN 0, attention 1, ..."""
    if component == 0:
        return QueryLayer(ComponentKind.EMBEDDING, 0, score)
    layer, is_ffn = divmod(component - 1, 2)
    return QueryLayer(ComponentKind.FFN if is_ffn else ComponentKind.ATTENTION, layer, score)


def _ranking(view: ModelView, scores: Tensor, k: int, sign: int) -> NeuronRanking:
    """Every FFN neuron ranked by its score in [L, N]; layers of fewer neurons leave gaps at the end of their rows."""
    widths = torch.tensor([len(layer.ffn_subvalues) for layer in view.layers], device=scores.device)
    gaps = torch.arange(scores.shape[1], device=scores.device) >= widths[:, None]
    total = int(widths.sum())
    ranked = all_scored((sign * scores).masked_fill(gaps, -torch.inf).flatten(), min(k, total))
    pairs = zip(ranked.ids.tolist(), (sign * ranked.scores).tolist(), strict=True)
    named = [(view.ffn_neuron(*divmod(number, scores.shape[1])), score) for number, score in pairs]
    neurons = tuple(NeuronScore(neuron, score) for neuron, score in named)
    return NeuronRanking(neurons, Coverage(total, total, total, exact=True))
