"""What activates the strongest value neurons: query layers, row by row, and query FFN neurons of many rows at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.query_scores import (
    QueryFfnScores,
    Readings,
    component_scores,
    query_ffn_scores,
    scaled_keys,
)
from neuron_attribution_server.model.attribution.ranking import all_scored
from neuron_attribution_server.model.attribution.value_neurons import BOUNDS_AT_ONCE
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.keys import attention_keys, ffn_keys
from neuron_attribution_server.model.engine.explanation.rows import Row, components
from neuron_attribution_server.model.engine.explanation.value_rankings import SIGNS, Source, side

SHARES_AT_ONCE = BOUNDS_AT_ONCE
"""What sources give to the neurons of a layer, held at once: rows are taken together up to so many. The bounds, for
which the memory is there, have been used by then."""
SOURCES_AT_ONCE = 64
"""Sources of query layers that share products, at most; each has the components at its position."""
COMPONENTS_AT_ONCE = BOUNDS_AT_ONCE // 4
"""Numbers of such components; each of these is there three times over, once as a float32 and once as a float64."""


class QueryLayersOfRow:
    """The query layers of one row."""

    def __init__(self, view: ModelView, captured: CapturedStates, row: Row) -> None:
        self._view = view
        self._captured = captured
        self._row = row

    def ffn(self, sources: Sequence[Source], subkey: Subkey) -> QueryLayers:
        """What activates FFN value neurons: components up to their own layer's attention, at the explained position.

        Beside attention, in a parallel block, the FFN does not read what attention writes.
        """
        neurons = [cast(FfnNeuron, source.neuron) for source in sources]
        beyond = 1 if self._view.spec.parallel else 2
        visible = [2 * neuron.layer + beyond for neuron in neurons]
        return self._layers(sources, ffn_keys(self._view, neurons, subkey), visible)

    def attention(self, sources: Sequence[Source]) -> QueryLayers:
        """What activates attention value neurons: the components below their layer, at their own position."""
        neurons = [cast(AttentionNeuron, source.neuron) for source in sources]
        visible = [2 * neuron.layer + 1 for neuron in neurons]
        return self._layers(sources, attention_keys(self._view, neurons), visible)

    def _layers(self, sources: Sequence[Source], keys: Tensor, visible: Sequence[int]) -> QueryLayers:
        """A few sources at a time: the components at as many positions are large."""
        columns = [source.position for source in sources], visible, [source.score for source in sources]
        positions, seen, scores = (torch.tensor(column, device=keys.device) for column in columns)
        found = [
            component_scores(self._components(positions[some]), keys[some], seen[some], scores[some])
            for some in checked(self._some(len(sources)))
        ]
        together = torch.stack([each.scores for each in found]).sum(0).float()
        return _query_layers(together, len(sources), sum(each.skipped for each in found))

    def _components(self, positions: Tensor) -> Tensor:
        """The components at the positions of sources, [K, C, d]."""
        distinct, which = positions.unique(return_inverse=True)
        return components(self._captured, self._row.sequence, distinct)[which]

    def _some(self, count: int) -> list[slice]:
        sizes = self._view.sizes
        each = (2 * sizes.layers + 1) * sizes.hidden_size
        step = max(1, min(SOURCES_AT_ONCE, COMPONENTS_AT_ONCE // each))
        return [slice(start, start + step) for start in range(0, count, step)]


@dataclass(frozen=True, slots=True)
class Asked:
    """A row that asks for its query FFN neurons, and the attention value neurons they activate."""

    row: Row
    sources: Sequence[Source]


def query_ffn_neurons(
    view: ModelView, captured: CapturedStates, asked: Sequence[Asked]
) -> Iterator[list[NeuronRanking]]:
    """For each row the FFN neurons that activate its sources most, or least, as its direction says: ends in turn."""
    widest = max(len(layer.ffn_subvalues) for layer in view.layers)
    for together in _batches(asked, SHARES_AT_ONCE // widest):
        found = _ffn_scores(view, captured, together)
        for each, scores, written in zip(together, found.scores, found.written, strict=True):
            options = each.row.options
            yield [_ranking(view, scores, written, options.top_k, sign) for sign in SIGNS[options.direction]]


def _batches(asked: Sequence[Asked], sources: int) -> Iterator[list[Asked]]:
    """Rows with so many sources together, at most; at least one."""
    batch: list[Asked] = []
    for each in asked:
        if batch and sum(len(other.sources) for other in (*batch, each)) > sources:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _ffn_scores(view: ModelView, captured: CapturedStates, asked: Sequence[Asked]) -> QueryFfnScores:
    """Query scores of every FFN neuron for every row."""
    sources = [(index, each.row.sequence, source) for index, each in enumerate(asked) for source in each.sources]
    neurons = [cast(AttentionNeuron, source.neuron) for _, _, source in sources]
    keys = attention_keys(view, neurons)
    inputs = torch.stack(
        [
            captured.inputs[neuron.layer][sequence, source.position]
            for neuron, (_, sequence, source) in zip(neurons, sources, strict=True)
        ]
    ).float()
    scores = torch.tensor([source.score for _, _, source in sources], device=keys.device)
    scaled, _ = scaled_keys(keys, inputs, scores)
    layers = torch.tensor([neuron.layer for neuron in neurons], device=keys.device)
    whose = torch.tensor([(row, sequence, source.position) for row, sequence, source in sources], device=keys.device)
    reading, readings = whose.unique(dim=0, return_inverse=True)
    place, places = reading[:, 1:].unique(dim=0, return_inverse=True)
    return query_ffn_scores(
        [layer.ffn_subvalues for layer in view.layers],
        _coefficients(view, captured, (place[:, 0], place[:, 1]), int(layers.max())),
        scaled,
        Readings(layers, readings, reading[:, 0], places),
        len(asked),
    )


def _coefficients(view: ModelView, captured: CapturedStates, at: tuple[Tensor, Tensor], below: int) -> Iterator[Tensor]:
    """FFN coefficients of layers 0 ... below - 1 at a few places (sequences and positions), [Q, N] each, in turn.

    Computed again from the residual stream: keeping them for every position would double what a token costs.
    """
    for number in range(below):
        found = captured.ffn_coefficients(view, number, at)
        yield found / captured.ffn_scales[number][at][:, None] if captured.ffn_scales else found


def _query_layers(scores: Tensor, count: int, skipped: int) -> QueryLayers:
    """Of the components' scores [2 L + 1]; so many sources were skipped."""
    order = scores.sort(descending=True, stable=True)
    layers = tuple(
        _query_layer(index, score) for index, score in zip(order.indices.tolist(), order.values.tolist(), strict=True)
    )
    return QueryLayers(layers, count, skipped)


def _query_layer(component: int, score: float) -> QueryLayer:
    """Components count embedding, attention 0, FFN 0, attention 1, ..."""
    if component == 0:
        return QueryLayer(ComponentKind.EMBEDDING, 0, score)
    layer, is_ffn = divmod(component - 1, 2)
    return QueryLayer(ComponentKind.FFN if is_ffn else ComponentKind.ATTENTION, layer, score)


def _ranking(view: ModelView, scores: Tensor, written: Tensor, k: int, sign: int) -> NeuronRanking:
    """Every FFN neuron ranked by its score in [L, N]; layers of fewer neurons leave gaps at the end of their rows."""
    widths = torch.tensor([len(layer.ffn_subvalues) for layer in view.layers], device=scores.device)
    gaps = torch.arange(scores.shape[1], device=scores.device) >= widths[:, None]
    total = int(widths.sum())
    ranked = all_scored((sign * scores).masked_fill(gaps, -torch.inf).flatten(), min(k, total))
    columns = (ranked.ids, sign * ranked.scores, written.flatten()[ranked.ids])
    neurons = tuple(
        NeuronScore(view.ffn_neuron(*divmod(number, scores.shape[1])), score, promoted_side=side(end))
        for number, score, end in zip(*(column.tolist() for column in columns), strict=True)
    )
    return NeuronRanking(neurons, Coverage(total, total, total, exact=True))
