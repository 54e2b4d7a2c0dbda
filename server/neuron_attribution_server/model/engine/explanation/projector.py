"""What neurons mean in the vocabulary: their vectors, projected, with the answers remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron
from neuron_attribution.requests import Side, Subkey
from neuron_attribution.results import ProjectedRank, ProjectedToken, Projection, Token
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.host import Ids, on_device, to_host
from neuron_attribution_server.model.attribution.projection import described, extremes, through_head, vectors_held
from neuron_attribution_server.model.attribution.subvalues import gathered, join
from neuron_attribution_server.model.attribution.unembedding import Unembedding
from neuron_attribution_server.model.engine.explanation.keys import attention_keys, ffn_keys
from neuron_attribution_server.model.engine.explanation.remembered import RememberedProjections

MOST_TOKENS = 1 << 16
"""Tokens whose texts are kept."""


class Projector:
    """Projects vectors and neurons into the vocabulary."""

    def __init__(self, view: ModelView, unembedding: Unembedding, token_text: Callable[[int], str]) -> None:
        self._view = view
        self._unembedding = unembedding
        self.token = lru_cache(MOST_TOKENS)(lambda token_id: Token(token_id, token_text(token_id)))
        """A token with its text."""
        self._remembered = RememberedProjections()

    def vectors(self, vectors: Tensor, k: int) -> list[Projection]:
        """The k highest and lowest tokens of vectors [C, d]."""
        if not len(vectors):
            return []
        found = extremes(self._unembedding, vectors, k)
        arrays = to_host([found.top, found.top_scores, found.bottom, found.bottom_scores])
        columns = [array.tolist() for array in arrays]
        return [
            Projection(self._tokens(top, top_scores), self._tokens(bottom, bottom_scores))
            for top, top_scores, bottom, bottom_scores in checked(zip(*columns, strict=True))
        ]

    def subvalues(self, neurons: Iterable[Neuron], k: int) -> dict[Neuron, Projection]:
        """The projections of neurons' subvalues; those not remembered share one matrix product."""
        recalled = {neuron: self._remembered.get(neuron, k) for neuron in dict.fromkeys(neurons)}
        missing = [neuron for neuron, projection in recalled.items() if projection is None]
        found = dict(zip(missing, self.vectors(self._subvalues(missing), k), strict=True))
        for neuron, projection in found.items():
            self._remembered.put(neuron, k, projection)
        return {neuron: projection or found[neuron] for neuron, projection in recalled.items()}

    def described(
        self, asked: Sequence[tuple[Neuron, tuple[int, ...]]], k: int
    ) -> list[tuple[Projection, tuple[ProjectedRank, ...]]]:
        """The projection of each neuron's subvalue, and where as many tokens for each stand in it."""
        found: list[tuple[Projection, tuple[ProjectedRank, ...]]] = []
        step = vectors_held(self._unembedding)
        for start in checked(range(0, len(asked), step)):
            neurons, tokens = zip(*asked[start : start + step], strict=True)
            named = on_device(np.array(tokens), self._view.device)
            ends, values, ranks = described(self._unembedding, self._subvalues(neurons), named, k)
            arrays = to_host([ends.top, ends.top_scores, ends.bottom, ends.bottom_scores, values, ranks])
            for neuron, *own, at, standing in zip(neurons, *(array.tolist() for array in arrays), strict=True):
                found.append((self._remember(neuron, own, k), tuple(map(ProjectedRank, at, standing))))
        return found

    def _remember(self, neuron: Neuron, ends: Sequence[list[Any]], k: int) -> Projection:
        """A neuron's projection, whose tokens are named once."""
        remembered = self._remembered.get(neuron, k)
        if remembered is not None:
            return remembered
        top, top_scores, bottom, bottom_scores = ends
        projection = Projection(self._tokens(top, top_scores), self._tokens(bottom, bottom_scores))
        self._remembered.put(neuron, k, projection)
        return projection

    def neurons(
        self, neurons: Sequence[Neuron], side: Side, subkey: Subkey, through: Head | None, k: int
    ) -> list[Projection]:
        """The projections of neurons' subvalues or subkeys, or of FFN subvalues read through a head."""
        if through is not None:
            return self.vectors(self._through(neurons, through), k)
        if side is Side.SUBKEY:
            return self.vectors(self._subkeys(neurons, subkey), k)
        found = self.subvalues(neurons, k)
        return [found[neuron] for neuron in neurons]

    def _tokens(self, ids: list[int], scores: list[float]) -> tuple[ProjectedToken, ...]:
        return tuple(ProjectedToken(self.token(token_id), score) for token_id, score in zip(ids, scores, strict=True))

    def _subvalues(self, neurons: Sequence[Neuron]) -> Tensor:
        """[C, d]; those of a layer's attention or FFN are gathered together."""

        def subvalues(layers: Ids, units: Ids, *, is_ffn: bool) -> Tensor:
            every = [layer.ffn_subvalues if is_ffn else layer.attention_subvalues for layer in self._view.layers]
            return gathered(every, layers, on_device(units, self._view.device))

        return self._by_layer(neurons, subvalues)

    def _subkeys(self, neurons: Sequence[Neuron], subkey: Subkey) -> Tensor:
        """[C, d]"""

        def keys(layers: Ids, units: Ids, *, is_ffn: bool) -> Tensor:
            if is_ffn:
                return ffn_keys(self._view, layers, units, subkey)
            return attention_keys(self._view, layers, units)

        return self._by_layer(neurons, keys)

    def _by_layer(self, neurons: Sequence[Neuron], vectors: Callable[..., Tensor]) -> Tensor:
        """A function's vectors of ascending layers and their units, of one kind at a time, for every neuron: [C, d]."""
        numbers = [(isinstance(each, FfnNeuron), each.layer, self._view.unit(each)) for each in neurons]
        is_ffn, layers, units = np.array(numbers, dtype=np.int64).reshape(-1, 3).T
        found, places = [], []
        for kind in (True, False):
            mine = (is_ffn == kind).nonzero()[0]
            mine = mine[np.argsort(layers[mine], kind="stable")]
            if len(mine):
                found.append(vectors(layers[mine], units[mine], is_ffn=kind))
                places.append(mine)
        if not found:
            return torch.empty(0)
        order = on_device(np.argsort(np.concatenate(places)), self._view.device)
        return join(found, 0)[order]

    def _through(self, neurons: Sequence[Neuron], through: Head) -> Tensor:
        if any(isinstance(neuron, AttentionNeuron) for neuron in neurons):
            raise InvalidArgumentError.of("through", "only FFN neurons are read through a head; leave it unset")
        layer = self._view.layers[through.layer]
        norm = layer.values_of.attention_norm
        subvalues = self._subvalues(neurons)
        first, size = through.head * layer.common.head_size, layer.sizes.head_size
        output_rows = layer.attention_subvalues.rows(on_device(np.arange(first, first + size), self._view.device))
        return through_head(norm.without_bias(subvalues), layer.value_rows(through.head), output_rows)
