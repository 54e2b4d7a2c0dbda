"""The best value neurons by the methods d to h, which look at a neuron's vectors and not at its base.

d, e and g are known for every neuron. f and h fall with the target's rank in the neuron's projection; a sample of the
vocabulary bounds every rank from below, and exact ranks are computed in descending order of the bound that follows.
Their lowest scores are found by computing every rank: low ranks are what bounds tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from neuron_attribution.requests import ScoringMethod
from torch import Tensor

from neuron_attribution_server.model.attribution.bounds import dot_product_error
from neuron_attribution_server.model.attribution.methods import NEEDS_RANKS, static_scores
from neuron_attribution_server.model.attribution.projection import vocabulary_ranks
from neuron_attribution_server.model.attribution.ranking import BoundedSearch, Ranked, search_until_exact
from neuron_attribution_server.model.attribution.states import RowStates, Weights
from neuron_attribution_server.model.attribution.subvalues import Subvalues, each_chunk, stack_layers
from neuron_attribution_server.model.attribution.unembedding import Unembedding
from neuron_attribution_server.model.attribution.value_neurons import ValueNeurons, gather_rows
from neuron_attribution_server.model.attribution.value_search import (
    Found,
    Kind,
    Wanted,
    norms_of,
    subvalues_of,
    value_neurons,
)

SAMPLE = 1024


def find_static(
    weights: Weights, states: RowStates, targets: Tensor, method: ScoringMethod, wanted: Mapping[Wanted, int]
) -> dict[Wanted, Found]:
    """The k best neurons of each wanted end, for rows with targets [E]."""
    search = _StaticSearch(weights, states, targets, method)
    return {want: search.find(want, k) for want, k in wanted.items()}


class _StaticSearch:
    """Searches by one method."""

    def __init__(self, weights: Weights, states: RowStates, targets: Tensor, method: ScoringMethod) -> None:
        self._weights = weights
        self._states = states
        self._targets = targets
        self._method = method

    def find(self, want: Wanted, k: int) -> Found:
        """The k best neurons of one end."""
        neurons = value_neurons(self._weights, self._states, want)
        if self._method not in NEEDS_RANKS:
            return Found(neurons.rank(self._scores(want.kind, neurons, None), k, want.sign), neurons)
        if want.sign < 0 or want.exhaustive:
            ranks = self._all_ranks(want)
            return Found(neurons.rank(self._scores(want.kind, neurons, ranks), k, want.sign), neurons)
        return Found(self._by_bounded_rank(want, neurons, k), neurons)

    def _scores(self, kind: Kind, neurons: ValueNeurons, ranks: Tensor | None) -> Callable[[slice], Tensor]:
        """Scores, or bounds where the ranks [L, n] are bounds, of the neurons of some layers, [layers, n, T]."""
        norms = norms_of(self._weights, kind).raw

        def of(layers: slice) -> Tensor:
            some = None if ranks is None else ranks[layers]
            return static_scores(self._method, neurons.coefficients(layers), norms[layers], some)

        return of

    def _all_ranks(self, want: Wanted) -> Tensor:
        """The target's rank in every neuron's projection, [L, n]."""
        target, subvalues = self._targets[want.row, None], subvalues_of(self._weights, want.kind)
        return _ranks(subvalues, lambda rows: vocabulary_ranks(self._weights.unembedding, rows, target)[0])

    def _by_bounded_rank(self, want: Wanted, neurons: ValueNeurons, k: int) -> Ranked:
        subvalues, target = subvalues_of(self._weights, want.kind), self._targets[want.row]
        least = _ranks(subvalues, lambda rows: least_ranks(self._weights.unembedding, rows, target))
        bounds = self._scores(want.kind, neurons, least)
        search = BoundedSearch(lambda count: neurons.top(count, bounds), neurons.total, k)
        ranks = torch.zeros_like(least)
        search_until_exact([search], lambda proposals: [self._exact(neurons, proposals[0], target, want.kind, ranks)])
        return search.result()

    def _exact(self, neurons: ValueNeurons, ids: Tensor, target: Tensor, kind: Kind, ranks: Tensor) -> Tensor:
        """The scores of ids; ranks [L, n] that are not known yet, zeros, are computed, once for all positions."""
        layers, units, _ = neurons.locate(ids)
        new = (ranks[layers, units] == 0).nonzero().squeeze(1)
        missing = torch.stack([layers[new], units[new]]).unique(dim=1).unbind()
        vectors = gather_rows(subvalues_of(self._weights, kind), *missing)
        ranks[missing] = vocabulary_ranks(self._weights.unembedding, vectors, target[None])[0]
        norms = norms_of(self._weights, kind).raw[layers, units]
        coefficients = neurons.coefficients_of(ids)[:, None, None]
        return static_scores(self._method, coefficients, norms[:, None], ranks[layers, units][:, None]).flatten()


def least_ranks(unembedding: Unembedding, vectors: Tensor, target: Tensor) -> Tensor:
    """A lower bound of the target's rank in the projections of vectors [C, d], [C].

    Counts the sampled tokens that are above the target by more than float32 can be wrong.
    """
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(len(unembedding.weight), generator=generator)[:SAMPLE].to(vectors.device)
    folded = unembedding.fold(vectors)
    error = 2 * dot_product_error(vectors.shape[1]) * unembedding.largest_norm * folded.norm(dim=-1)
    own = folded @ unembedding.weight[target]
    above: Tensor = folded @ unembedding.weight[sample].T > (own + error)[:, None]
    return above.sum(-1) + 1


def _ranks(layers: Sequence[Subvalues], ranks: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of subvalues [n_i, d] at every layer, [L, n]; one in gaps, which no ranking returns."""
    return stack_layers([each_chunk(layer, ranks) for layer in layers]).clamp_min_(1)
