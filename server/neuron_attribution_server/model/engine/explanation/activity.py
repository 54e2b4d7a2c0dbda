"""How usual a neuron's coefficient is: some neurons are strong whatever is asked, and say little about an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from neuron_attribution.neurons import FfnNeuron, Neuron
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView

HALF = 0.5
"""How strong a neuron is at a first token, at least, that is taken for as strong there."""


class Activity:
    """The coefficients of every FFN neuron in C contexts, [C, L, N] in half precision, gaps of narrower layers zero.

    Beside them those of S first tokens, [S, L, N], at which some neurons are huge, whatever the token is.
    """

    def __init__(self, view: ModelView, coefficients: Tensor, first: Tensor) -> None:
        self._view = view
        self._coefficients = coefficients
        self._first = first

    @property
    def contexts(self) -> int:
        """How many contexts there are."""
        return len(self._coefficients)

    def parts(self, neurons: Sequence[tuple[Neuron, float | None]]) -> list[float]:
        """The part of the contexts in which each FFN neuron's coefficient has this sign and is at least as large."""
        return self._parts(self._coefficients, neurons, 1.0)

    def parts_of_first(self, neurons: Sequence[tuple[Neuron, float | None]]) -> list[float]:
        """The part of the first tokens at which it is half as large: the size of the huge ones hangs on the token."""
        return self._parts(self._first, neurons, HALF)

    def _parts(self, found: Tensor, neurons: Sequence[tuple[Neuron, float | None]], share: float) -> list[float]:
        if not neurons:
            return []
        named = [(neuron.layer, self._unit(neuron), coefficient or 0.0) for neuron, coefficient in neurons]
        layers, units, coefficients = (torch.tensor(column, device=found.device) for column in zip(*named, strict=True))
        usual = found[:, layers, units].float() * coefficients.sign()
        parts: list[float] = (usual >= share * coefficients.abs()).float().mean(0).tolist()
        return parts

    def _unit(self, neuron: Neuron) -> int:
        assert isinstance(neuron, FfnNeuron)
        return self._view.ffn_unit(neuron)
