"""Which layers activate the strongest value neurons, for many rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from neuron_attribution.requests import Subkey
from neuron_attribution.results import ComponentKind, QueryLayer, QueryLayers
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.host import Array, Ids, on_device
from neuron_attribution_server.model.attribution.query_scores import ComponentScores, component_scores
from neuron_attribution_server.model.attribution.subvalues import join
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.keys import attention_keys, ffn_keys
from neuron_attribution_server.model.engine.explanation.rows import components
from neuron_attribution_server.model.engine.explanation.sources import Asked, SourceBatch


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Sources of several rows, their keys [K, d], and how many of the first components each can read, [K]."""

    sources: SourceBatch
    keys: Tensor
    visible: Ids


def ffn_reading(view: ModelView, asked: Sequence[Asked], subkey: Subkey) -> Reading:
    """What activates FFN value neurons: components up to their own layer's attention, at the explained position.

    Beside attention, in a parallel block, the FFN does not read what attention writes.
    """
    sources = SourceBatch(asked, view.device)
    beyond = 1 if view.spec.parallel else 2
    return Reading(sources, ffn_keys(view, sources.layers, sources.units, subkey), 2 * sources.layers + beyond)


def attention_reading(view: ModelView, asked: Sequence[Asked]) -> Reading:
    """What activates attention value neurons: the components below their layer, at their own position."""
    sources = SourceBatch(asked, view.device)
    return Reading(sources, attention_keys(view, sources.layers, sources.units), 2 * sources.layers + 1)


def query_layers(captured: CapturedStates, readings: Sequence[Reading]) -> ComponentScores:
    """The scores of every component for the rows of all readings, one after another."""
    starts = list(accumulate((reading.sources.count for reading in readings), initial=0))
    sources = [reading.sources for reading in readings]
    sequences, positions = (join([each.at[place] for each in sources], 0) for place in range(2))
    keys = join([reading.keys for reading in readings], 0)
    return component_scores(
        components(captured),
        (sequences, positions),
        keys,
        on_device(np.concatenate([reading.visible for reading in readings]), keys.device),
        join([each.scores for each in sources], 0),
        join([each.row + start for each, start in zip(sources, starts, strict=False)], 0),
        starts[-1],
    )


def named_layers(scores: Array, sources: int, skipped: int) -> QueryLayers:
    """Layers by their scores [2 L + 1], the highest first; so many sources, of which some were skipped."""
    order = np.argsort(-scores, kind="stable")
    layers = tuple(_layer(*pair) for pair in zip(order.tolist(), scores[order].tolist(), strict=True))
    return QueryLayers(layers, sources, skipped)


def _layer(component: int, score: float) -> QueryLayer:
    """Components count embedding, attention 0, FFN 0, attention 1, ..."""
    if component == 0:
        return QueryLayer(ComponentKind.EMBEDDING, 0, score)
    layer, is_ffn = divmod(component - 1, 2)
    return QueryLayer(ComponentKind.FFN if is_ffn else ComponentKind.ATTENTION, layer, score)
