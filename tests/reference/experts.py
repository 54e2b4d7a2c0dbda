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
        self._inputs_first = type(module).__name__ == "AriaExperts"
        self._weighed = type(module).__name__ == "Llama4TextExperts"
        self._count = len(module.down_proj)

    def down(self) -> Tensor:
        """What every neuron writes, [experts * N, d]."""
        weight = self.module.down_proj.detach().double()
        first = self._open or self._inputs_first or self._weighed
        return (weight if first else weight.transpose(1, 2)).flatten(0, 1)

    def keys(self) -> tuple[Tensor, Tensor | None]:
        """The rows of the up and of the gate projection, where there is a gate, [experts * N, d] each."""
        up, gate = self._inputs()
        return up.flatten(0, 1), None if gate is None else gate.flatten(0, 1)

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
        up, gate = self._inputs()
        ups = torch.einsum("td,end->ten", states, up)
        if gate is None:
            found = chosen[:, :, None] * self.module.act_fn(ups)
        else:
            found = chosen[:, :, None] * self._activated(ups, torch.einsum("td,end->ten", states, gate))
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

    def _inputs(self) -> tuple[Tensor, Tensor | None]:
        """Up rows and gate rows, where there is a gate, [experts, N, d]."""
        if not (self._weighed or self.module.has_gate):
            return self.module.up_proj.detach().double(), None
        return self._halves(self.module.gate_up_proj.detach().double())

    def _halves(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Up and gate rows, [experts, N, d]: GPT-OSS has columns that take turns, Aria columns, others rows."""
        if self._open:
            return weight[:, :, 1::2].transpose(1, 2), weight[:, :, ::2].transpose(1, 2)
        gate, up = (weight.transpose(1, 2) if self._inputs_first or self._weighed else weight).chunk(2, dim=1)
        return up, gate

    def _activated(self, up: Tensor, gate: Tensor) -> Tensor:
        module = self.module
        if hasattr(module, "swiglu_limit"):
            return clamped(gate, up, module.swiglu_alpha, module.swiglu_limit)
        if not self._open:
            return module.act_fn(gate) * up
        bias = module.gate_up_proj_bias.detach().double()
        return clamped(gate + bias[:, ::2], up + bias[:, 1::2], module.alpha, module.limit)


def clamped(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    """GPT-OSS's activation."""
    gate = gate.clamp(max=limit)
    return (up.clamp(-limit, limit) + 1) * gate * torch.sigmoid(alpha * gate)
