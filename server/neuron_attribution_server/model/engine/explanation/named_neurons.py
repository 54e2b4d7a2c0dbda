"""The neurons a request names: scored whatever their rank, or taken as the sources of the query parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from neuron_attribution.neurons import FfnNeuron, Neuron, QuerySource
from neuron_attribution.results import NeuronScore
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.objectives import Objective
from neuron_attribution_server.model.attribution.states import RowStates, Weights
from neuron_attribution_server.model.attribution.value_search import Kind, Wanted, subvalues_of, value_neurons
from neuron_attribution_server.model.engine.explanation.value_rankings import Source, side


class NamedNeurons:
    """Scores named neurons at the rows of a group, by the objective's increase."""

    def __init__(
        self, view: ModelView, weights: Weights, states: RowStates, scale: Tensor, objective: Objective
    ) -> None:
        self._view = view
        self._weights = weights
        self._states = states
        self._scale = scale
        self._objective = objective

    def scores(self, row: int, neurons: Sequence[Neuron]) -> tuple[NeuronScore, ...]:
        """The score of each; attention neurons over all source positions together."""
        if not neurons:
            return ()
        layers = self._view.sizes.layers
        vectors, factors, bases = [], [], []
        for neuron in neurons:
            kind, unit = _kind(neuron), self._unit(neuron)
            place = torch.tensor([unit], device=self._scale.device)
            vectors.append(subvalues_of(self._weights, kind)[neuron.layer].rows(place)[0])
            bases.append(neuron.layer + (layers + 1 if kind is Kind.FFN else 0))
            activations = self._states.coefficients if kind is Kind.FFN else self._states.head_outputs.flatten(2)
            factors.append(activations[row, neuron.layer, unit])
        coefficients = torch.stack(factors)
        increases = self._increases(row, torch.stack(vectors), coefficients, torch.tensor(bases))
        triples = zip(neurons, increases.tolist(), coefficients.tolist(), strict=True)
        return tuple(
            NeuronScore(neuron, score, None, coefficient, None, side(coefficient))
            for neuron, score, coefficient in triples
        )

    def sources(self, row: int, explained: int, named: Sequence[QuerySource], kind: Kind) -> list[Source]:
        """Those of one kind as query sources of a row explained at a position; what it cannot see is left out."""
        places = [
            (source.neuron, position)
            for source in named
            if _kind(source.neuron) is kind
            for position in _positions(source, explained)
        ]
        if not places:
            return []
        neurons = value_neurons(self._weights, self._states, Wanted(row, kind, 1, exhaustive=False))
        ids = torch.tensor(
            [
                (neuron.layer * neurons.units + self._unit(neuron)) * neurons.positions + position % neurons.positions
                for neuron, position in places
            ],
            device=self._scale.device,
        )
        coefficients = neurons.coefficients_of(ids)
        increases = self._increases(row, neurons.subvalues(ids), coefficients, neurons.bases(ids))
        return [Source(*place, score) for place, score in zip(places, increases.tolist(), strict=True)]

    def _increases(self, row: int, vectors: Tensor, coefficients: Tensor, bases: Tensor) -> Tensor:
        """The increases of vectors [C, d] by their coefficients [C], each beside the base of this number, [C]."""
        folded = self._weights.unembedding.fold(vectors) * (coefficients / self._scale[row])[:, None]
        offsets = bases.to(folded.device) + row * self._objective.values.shape[1]
        return self._objective.increases(folded, offsets)

    def _unit(self, neuron: Neuron) -> int:
        if isinstance(neuron, FfnNeuron):
            return self._view.ffn_unit(neuron)
        return neuron.head * self._view.sizes.head_size + neuron.index


def _kind(neuron: Neuron) -> Kind:
    return Kind.FFN if isinstance(neuron, FfnNeuron) else Kind.ATTENTION


def _positions(source: QuerySource, explained: int) -> Iterator[int]:
    """Where it reads: an FFN neuron at the explained position, an attention neuron at its own or at each."""
    if isinstance(source.neuron, FfnNeuron):
        yield explained
    elif source.position is None:
        yield from range(explained + 1)
    elif source.position <= explained:
        yield source.position
