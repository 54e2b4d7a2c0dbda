"""Which FFN neurons activate the strongest attention value neurons, for many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from neuron_attribution.results import Coverage, NeuronRanking, NeuronScore
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.host import Array, Ids, columns_on_device, on_device
from neuron_attribution_server.model.attribution.query_scores import Readings, query_ffn_scores, scaled_keys
from neuron_attribution_server.model.attribution.search.ranking import highest
from neuron_attribution_server.model.attribution.search.value_neurons import BOUNDS_AT_ONCE
from neuron_attribution_server.model.attribution.subvalues import join
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.keys import attention_keys, layer_spans
from neuron_attribution_server.model.engine.explanation.sources import Asked, SourceBatch
from neuron_attribution_server.model.engine.explanation.value_rankings import SIGNS, side

SHARES_AT_ONCE = BOUNDS_AT_ONCE
"""What sources give to the neurons of a layer, held at once: rows are taken together up to so many. The bounds, for
which the memory is there, have been used by then."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryNeurons:
    """One end of several rows' rankings: ids by (layer, unit), scores, and by its sign what each writes, [R, k]."""

    ids: Tensor
    scores: Tensor
    written: Tensor


def query_ffn_neurons(
    view: ModelView, captured: CapturedStates, asked: Sequence[Asked]
) -> Iterator[tuple[int, dict[int, QueryNeurons]]]:
    """The FFN neurons that activate rows' sources most (sign 1), or least (-1), as any of them asks.

    So many rows at a time, in turn.
    """
    widest = max(len(layer.ffn_subvalues) for layer in view.layers)
    for together in _batches(asked, SHARES_AT_ONCE // widest):
        signs = {sign for each in together for sign in SIGNS[each.row.options.direction]}
        yield len(together), _ranked(view, captured, together, signs)


def named_neurons(view: ModelView, ids: Ids, scores: Array, written: Array) -> NeuronRanking:
    """A ranking [k] with its neurons named."""
    widths = [len(layer.ffn_subvalues) for layer in view.layers]
    total, columns = sum(widths), (column.tolist() for column in (ids, scores, written))
    neurons = tuple(
        NeuronScore(view.ffn_neuron(*divmod(number, max(widths))), score, promoted_side=side(end))
        for number, score, end in zip(*columns, strict=True)
    )
    return NeuronRanking(neurons[:total], Coverage(total, total, total, exact=True))


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


def _ranked(
    view: ModelView, captured: CapturedStates, asked: Sequence[Asked], signs: set[int]
) -> dict[int, QueryNeurons]:
    scores, written = _scores(view, captured, asked)
    if any(len(layer.ffn_subvalues) < scores.shape[2] for layer in view.layers):
        widths = on_device(np.array([len(layer.ffn_subvalues) for layer in view.layers]), scores.device)
        gaps = torch.arange(scores.shape[2], device=scores.device) >= widths[:, None]
    else:
        gaps = None
    most = max(each.row.options.top_k for each in asked)
    found = {}
    for sign in sorted(signs, reverse=True):
        if sign < 0:
            scores.neg_()
        if gaps is not None:
            scores.masked_fill_(gaps, -torch.inf)
        ids, values = highest(scores.flatten(1), most)
        found[sign] = QueryNeurons(ids, sign * values, written.flatten(1).gather(1, ids))
    return found


def _scores(view: ModelView, captured: CapturedStates, asked: Sequence[Asked]) -> tuple[Tensor, Tensor]:
    """Query scores of every FFN neuron for every row, and what each writes, [R, L, N] each."""
    sources = SourceBatch(asked, view.device)
    keys = attention_keys(view, sources.layers, sources.units)
    sequences, positions = sources.at
    spans = list(layer_spans(sources.layers))
    inputs = join([captured.inputs[layer][sequences[span], positions[span]] for layer, span in spans], 0)
    scaled, _ = scaled_keys(keys, inputs.float(), sources.scores)
    whose = np.stack([sources.rows, sources.sequences, sources.positions], 1)
    reading, readings = np.unique(whose, axis=0, return_inverse=True)
    place, places = np.unique(reading[:, 1:], axis=0, return_inverse=True)
    at = columns_on_device([reading[:, 0], places.ravel()], view.device)
    return query_ffn_scores(
        [layer.ffn_subvalues for layer in view.layers],
        _coefficients(view, captured, columns_on_device([*place.T], view.device), anew=asked[0].row.alone),
        scaled,
        Readings(dict(spans), columns_on_device([readings.ravel()], view.device)[0], *at),
        len(asked),
    )


def _coefficients(
    view: ModelView, captured: CapturedStates, at: tuple[Tensor, ...], *, anew: bool
) -> Callable[[int], Tensor]:
    """FFN coefficients of a layer at a few places (sequences and positions), [Q, N].

    Those that are kept, or computed again from the residual stream: `anew` for rows whose answer may not depend, to the
    last bit, on what is kept in a batch.
    """
    sequences, positions = at
    kept = {} if anew else captured.every_coefficient

    def of(number: int) -> Tensor:
        if number in kept:
            found = kept[number][sequences, positions]
        else:
            found = captured.ffn_coefficients(view, number, (sequences, positions))
        return found / captured.ffn_scales[number][sequences, positions][:, None] if captured.ffn_scales else found

    return of
