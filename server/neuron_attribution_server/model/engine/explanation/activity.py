"""How usual a neuron's coefficient is: some neurons are strong whatever is asked, and say little about an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from neuron_attribution.neurons import FfnNeuron, Neuron
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView


class Activity:
    """The coefficients of every FFN neuron in C contexts, [C, L, N] in half precision, gaps of narrower layers zero."""

    def __init__(self, view: ModelView, coefficients: Tensor) -> None:
        self._view = view
        self._coefficients = coefficients

    @property
    def contexts(self) -> int:
        """How many contexts there are."""
        return len(self._coefficients)

    def parts(self, neurons: Sequence[tuple[Neuron, float | None]]) -> list[float]:
        """The part of the contexts in which each FFN neuron's coefficient has this sign and is at least as large."""
        if not neurons:
            return []
        found = self._coefficients
        named = [(neuron.layer, self._unit(neuron), coefficient or 0.0) for neuron, coefficient in neurons]
        layers, units, coefficients = (torch.tensor(column, device=found.device) for column in zip(*named, strict=True))
        usual = found[:, layers, units].float() * coefficients.sign()
        parts: list[float] = (usual >= coefficients.abs()).float().mean(0).tolist()
        return parts

    def _unit(self, neuron: Neuron) -> int:
        assert isinstance(neuron, FfnNeuron)
        return self._view.ffn_unit(neuron)
