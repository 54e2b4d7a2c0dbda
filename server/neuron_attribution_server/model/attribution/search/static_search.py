"""The best value neurons by the methods d to h, which look at a neuron's vectors and not at its base.

d, e and g are known for every neuron. f and h fall with the target's rank in the neuron's projection; a sample of the
vocabulary bounds every rank from below, and exact ranks are computed in descending order of the bound that follows.
Their lowest scores are found by computing every rank: low ranks are what bounds tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from neuron_attribution.requests import ScoringMethod
from torch import Tensor

from neuron_attribution_server.model.attribution.host import Array, Ids, columns_on_device, on_device, to_host
from neuron_attribution_server.model.attribution.methods import NEEDS_RANKS, static_scores
from neuron_attribution_server.model.attribution.projection import vocabulary_ranks
from neuron_attribution_server.model.attribution.search.ranking import BoundedSearch, Ranked, search_until_exact
from neuron_attribution_server.model.attribution.search.value_neurons import ValueNeurons
from neuron_attribution_server.model.attribution.search.value_search import (
    Found,
    Grids,
    Wanted,
    norms_of,
    subvalues_of,
)
from neuron_attribution_server.model.attribution.states import Weights
from neuron_attribution_server.model.attribution.subvalues import Subvalues, gathered, stack_layers
from neuron_attribution_server.model.attribution.unembedding import Unembedding

SAMPLE = 1024


def find_static(
    weights: Weights, grids: Grids, targets: Tensor, method: ScoringMethod, wanted: Mapping[Wanted, int]
) -> dict[Wanted, Found]:
    """The k best neurons of each wanted end, for rows with targets [E]."""
    search = StaticSearch(weights, grids, targets, method)
    return {want: search.find(want, k) for want, k in wanted.items()}


class StaticSearch:
    """Searches by one method."""

    def __init__(self, weights: Weights, grids: Grids, targets: Tensor, method: ScoringMethod) -> None:
        self._weights = weights
        self._grids = grids
        self._targets = targets
        self._method = method

    def find(self, want: Wanted, k: int) -> Found:
        """The k best neurons of one end."""
        neurons = self._grids.of(want.kind, over_positions=want.over_positions)
        if self._method in NEEDS_RANKS and want.sign > 0 and not want.exhaustive:
            ranked = self._by_bounded_rank(want, neurons, k)
        else:
            ranks = self._all_ranks(want) if self._method in NEEDS_RANKS else None
            ranked = neurons.rank(want.row, self._scores(want, neurons, ranks), k, want.sign)
        return Found(ranked, neurons, neurons.coefficients_of(want.row, ranked.ids))

    def _scores(self, want: Wanted, neurons: ValueNeurons, ranks: Tensor | None) -> Callable[[slice], Tensor]:
        """Scores of the neurons of some layers, [layers, units, positions], with ranks [L, n] where they count."""
        norms = norms_of(self._weights, want.kind).raw

        def of(layers: slice) -> Tensor:
            some = None if ranks is None else ranks[layers, :, None]
            return static_scores(self._method, neurons.by_unit(want.row, layers), norms[layers, :, None], some)

        return of

    def _all_ranks(self, want: Wanted) -> Tensor:
        """The target's rank in every neuron's projection, [L, n]."""
        target, unembedding = self._targets[want.row, None], self._weights.unembedding
        subvalues = subvalues_of(self._weights, want.kind)
        return _ranks(subvalues, lambda rows: vocabulary_ranks(unembedding, rows, target)[0])

    def _by_bounded_rank(self, want: Wanted, neurons: ValueNeurons, k: int) -> Ranked:
        target, norms = self._targets[want.row], norms_of(self._weights, want.kind).raw
        least = _ranks(neurons.subvalues, lambda rows: least_ranks(self._weights.unembedding, rows, target))

        def bounds(rows: slice, layers: slice) -> Tensor:
            units = (neurons.laid_out(each[layers]) for each in (norms, least))
            return static_scores(self._method, neurons.coefficients(rows, layers), *units)

        def candidates(count: int) -> tuple[Ids, Array]:
            ids, values = neurons.top([want.row], count, bounds)
            return ids[0], values[0]

        ranks = np.zeros(norms.shape, dtype=np.int64)

        def exact(proposals: list[Ids]) -> list[Array]:
            return [self._exact(want, neurons, ids, norms, ranks) for ids in proposals]

        search = BoundedSearch(candidates, neurons.total(want.row), k)
        search_until_exact([search], exact)
        return search.result()

    def _exact(self, want: Wanted, neurons: ValueNeurons, ids: Ids, norms: Tensor, ranks: Ids) -> Array:
        """Scores [C] of some neurons of a row; ranks [L, n] that are zeros are computed, once for all positions."""
        layers, units, positions = neurons.locate(ids)
        is_missing = ranks[layers, units] == 0
        missing = np.unique(np.stack([layers[is_missing], units[is_missing]]), axis=1)
        vectors = gathered(neurons.subvalues, missing[0], on_device(missing[1], norms.device))
        target = self._targets[want.row, None]
        ranks[missing[0], missing[1]] = to_host([vocabulary_ranks(self._weights.unembedding, vectors, target)[0]])[0]
        columns = (np.full_like(ids, want.row), layers, units, positions, ranks[layers, units])
        *at, known = columns_on_device(columns, norms.device)
        scores = static_scores(self._method, neurons.coefficients_at(*at), norms[at[1], at[2]], known)
        found: Array = to_host([scores])[0]
        return found


def least_ranks(unembedding: Unembedding, vectors: Tensor, target: Tensor) -> Tensor:
    """A lower bound of the target's rank in the projections of vectors [C, d], [C].

    Counts the sampled tokens that are above the target by more than float32 can be wrong.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = len(unembedding.weight)
    sample = torch.randperm(vocabulary, generator=generator)[:SAMPLE].to(vectors.device)
    folded = unembedding.fold(vectors)
    error = 2 * unembedding.dot_error * unembedding.largest_norm * folded.norm(dim=-1)
    own = folded @ unembedding.rows(target)
    above: Tensor = folded @ unembedding.rows(sample).T > (own + error)[:, None]
    return above.sum(-1) + 1


def _ranks(layers: Sequence[Subvalues], ranks: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of subvalues [n_i, d] at every layer, [L, n]; one in gaps, which no ranking returns."""
    return stack_layers([layer.each(ranks) for layer in layers]).clamp_min_(1)
