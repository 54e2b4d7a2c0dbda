"""Routed experts in float64, from their parameters."""

from __future__ import annotations

import torch
from neuron_attribution.neurons import FfnNeuron
from torch import Tensor, nn

from reference.recording import Call

EXPERT = 1_000_000
"""A neuron of expert e goes by (e + 1) * EXPERT + its index; others by their index."""


def ffn_name(neuron: FfnNeuron) -> int:
    """How a neuron goes within its layer."""
    return neuron.index if neuron.expert is None else (neuron.expert + 1) * EXPERT + neuron.index


class RoutedExperts:
    """One layer's experts."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._open = type(module).__name__ == "GptOssExperts"
        self._weighed = type(module).__name__ == "Llama4TextExperts"
        self._count = len(module.down_proj)

    def down(self) -> Tensor:
        """What every neuron writes, [experts * N, d]."""
        weight = self.module.down_proj.detach().double()
        return (weight if self._open or self._weighed else weight.transpose(1, 2)).flatten(0, 1)

    def keys(self) -> tuple[Tensor, Tensor]:
        """The rows of the up and of the gate projection, [experts * N, d] each."""
        up, gate = self._halves(self.module.gate_up_proj.detach().double())
        return up.flatten(0, 1), gate.flatten(0, 1)

    def names(self) -> tuple[int, ...]:
        """Every neuron's name."""
        width = len(self.down()) // self._count
        return tuple((expert + 1) * EXPERT + index for expert in range(self._count) for index in range(width))

    def coefficients(self, call: Call) -> Tensor:
        """Activation times router weight, [T, experts * N]; with the biases they give what the experts gave."""
        if self._weighed:
            return self._weighed_coefficients(call)
        states, indices, weights = call.inputs
        chosen = torch.zeros(len(states), self._count, dtype=torch.float64)
        chosen.scatter_add_(1, indices, weights)
        up, gate = self._halves(self.module.gate_up_proj.detach().double())
        ups, gates = (torch.einsum("td,end->ten", states, rows) for rows in (up, gate))
        found = chosen[:, :, None] * self._activated(ups, gates)
        written = found.flatten(1) @ self.down()
        if self._open:
            written = written + chosen @ self.module.down_proj_bias.detach().double()
        assert (written - call.output).abs().max() < 1e-5 * call.output.abs().max(), "experts"
        return found.flatten(1)

    def written(self, call: Call) -> Tensor:
        """What all experts gave together, [T, d]."""
        return call.output.unflatten(0, (self._count, -1)).sum(0) if self._weighed else call.output

    def _weighed_coefficients(self, call: Call) -> Tensor:
        """Of experts that each read every token, weighed before: what their down projections take in."""
        reads = call.input.unflatten(0, (self._count, -1))
        gate, up = (reads @ self.module.gate_up_proj.detach().double()).chunk(2, dim=-1)
        found = torch.nn.functional.silu(gate) * up
        written = found @ self.module.down_proj.detach().double()
        assert (written.flatten(0, 1) - call.output).abs().max() < 1e-5 * call.output.abs().max(), "experts"
        return found.transpose(0, 1).flatten(1)

    def _halves(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Up and gate rows, [experts, N, d]: GPT-OSS has columns that take turns, others have gates first."""
        if self._open:
            return weight[:, :, 1::2].transpose(1, 2), weight[:, :, ::2].transpose(1, 2)
        gate, up = (weight.transpose(1, 2) if self._weighed else weight).chunk(2, dim=1)
        return up, gate

    def _activated(self, up: Tensor, gate: Tensor) -> Tensor:
        if not self._open:
            return self.module.act_fn(gate) * up
        bias = self.module.gate_up_proj_bias.detach().double()
        up, gate = up + bias[:, 1::2], gate + bias[:, ::2]
        gate = gate.clamp(max=self.module.limit)
        return (up.clamp(-self.module.limit, self.module.limit) + 1) * gate * torch.sigmoid(self.module.alpha * gate)
