"""Feed-forward networks: dense ones, routed experts, and what a layer has of both.

A layer's neurons are counted through all of it: those of its dense network (or of the shared expert, which every token
passes through) first, then expert 0's, expert 1's, ... A routed neuron's coefficient contains its expert's router
weight and is zero where the expert is not chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from neuron_attribution.requests import Subkey
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.packed import PackedExperts
from neuron_attribution_server.model.architectures.parameters import required
from neuron_attribution_server.model.architectures.projections import (
    HeadSizes,
    Projection,
    bias_of,
    shape_of,
    weight_of,
)
from neuron_attribution_server.model.architectures.spec import FeedForward
from neuron_attribution_server.model.attribution.host import Ids
from neuron_attribution_server.model.attribution.subvalues import FrozenWrite, Subvalues


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Which experts tokens go to, and how much each counts: indices and weights, [..., k]."""

    indices: Tensor
    weights: Tensor

    def at(self, places: Any) -> Routing:  # noqa: ANN401 - whatever indexes a tensor
        """The routing of some tokens."""
        return Routing(self.indices[places], self.weights[places])


class OneByOne(Sequence[Tensor]):
    """Matrices that are read when they are asked for, and not kept."""

    def __init__(self, count: int, read: Callable[[int], Tensor]) -> None:
        self._count = count
        self._read = read

    @overload
    def __getitem__(self, number: int) -> Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> list[Tensor]: ...
    def __getitem__(self, number: int | slice) -> Tensor | list[Tensor]:
        if isinstance(number, slice):
            return [self._read(each) for each in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._read(number)

    def __len__(self) -> int:
        return self._count


class DenseFfn:
    """A dense network, or the expert that every token passes through."""

    def __init__(self, layer: nn.Module, paths: FeedForward, sizes: HeadSizes) -> None:
        self.output = layer.get_submodule(paths.output)
        self.width = shape_of(self.output)[1]
        self.gated = paths.gate is not None
        self._activation = layer.get_submodule(paths.activation)
        self._up = Projection(layer.get_submodule(paths.up.module), paths.up.layout, sizes)
        self._gate: Projection | None = None
        if paths.gate is not None:
            self._gate = Projection(layer.get_submodule(paths.gate.module), paths.gate.layout, sizes)
        self.reads = layer.get_submodule(paths.up.module)
        """The module that what the network reads goes into."""
        self.weight = None if paths.weight is None else layer.get_submodule(paths.weight)

    @property
    def blocks(self) -> list[Tensor]:
        """Rows of W_down, [N, d]."""
        return [weight_of(self.output).T]

    def keys(self, units: Ids, subkey: Subkey) -> Tensor:
        """Neurons' rows of the up or the gate projection, [C, d]."""
        projection = self._gate if subkey is Subkey.GATE else self._up
        if projection is None:
            raise LookupError("this FFN has no gate")
        return projection.rows(units)

    def coefficients(self, normed: Tensor) -> Tensor:
        """Coefficients [..., N] from what the FFN reads, [..., d]."""
        activated: Tensor
        if self._gate is None:
            activated = self._activation(self._up(normed))
        else:
            activated = self._activation(self._gate(normed)).to(normed.device) * self._up(normed)
        share = self.share(normed)
        return activated if share is None else activated * share

    def bias(self, normed: Tensor) -> Tensor | None:
        """What is written beside the neurons, [d] or [..., d]."""
        bias, share = bias_of(self.output), self.share(normed)
        return bias if bias is None or share is None else bias * share

    def share(self, normed: Tensor) -> Tensor | None:
        """What everything this network writes is multiplied by, [..., 1], where there is such a thing."""
        return None if self.weight is None else torch.sigmoid(normed @ weight_of(self.weight).float().T)


class Experts:
    """Routed experts: transformers keeps all of a layer's in 3-D parameters."""

    def __init__(self, module: Any) -> None:  # noqa: ANN401 - read by attributes that all experts classes have
        self.module = module
        self.count = len(module.down_proj)
        self.gated: bool = module.has_gate
        self.width: int = module.down_proj.shape[1 if module.is_transposed else 2]
        """Neurons of one expert."""

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Rows of each expert's W_down, [N, d]."""
        if isinstance(self.module.down_proj, PackedExperts):
            return OneByOne(self.count, self.block)
        weight = required(self.module, "down_proj")
        return list(weight if self.module.is_transposed else weight.transpose(1, 2))

    def block(self, expert: int) -> Tensor:
        """Rows of one expert's W_down, [N, d]."""
        weight = self._matrix("down_proj", expert)
        return weight if self.module.is_transposed else weight.T

    def key(self, expert: int, index: int, subkey: Subkey) -> Tensor:
        """A neuron's row of its expert's up or gate projection, [d]."""
        rows = self._inputs(expert)
        if not self.gated:
            if subkey is Subkey.GATE:
                raise LookupError("these experts have no gate")
            return rows[index].float()
        second = subkey is not Subkey.GATE
        place = index + second * self.width if self.module.is_concatenated else 2 * index + second
        return rows[place].float()

    def coefficients(self, normed: Tensor, routing: Routing) -> Tensor:
        """Coefficients [P, experts * N] from what the experts read, [P, d], and where it goes."""
        found = normed.new_zeros(len(normed), self.count, self.width)
        for expert in routing.indices.unique().tolist():
            if expert < self.count:
                found[:, expert] = self.expert_coefficients(normed, routing, expert)
        return found.flatten(1)

    def expert_coefficients(self, normed: Tensor, routing: Routing, expert: int) -> Tensor:
        """Coefficients [P, N] of one expert's neurons, zero where it is not chosen."""
        chosen = routing.indices == expert
        tokens = chosen.any(-1).nonzero().squeeze(1)
        share = (routing.weights.float() * chosen).sum(-1)
        found = normed.new_zeros(len(normed), self.width)
        if len(tokens):
            found[tokens] = self._activated(normed[tokens], expert) * share[tokens, None]
        return found

    def bias(self, routing: Routing) -> Tensor | None:
        """What is written beside the neurons: each chosen expert's bias times its weight, [P, d]."""
        if not self.module.has_bias:
            return None
        biases = required(self.module, "down_proj_bias").float()[routing.indices.clamp_max(self.count - 1)]
        chosen = routing.weights.float() * (routing.indices < self.count)
        return (chosen[..., None] * biases).sum(-2)

    def _activated(self, normed: Tensor, expert: int) -> Tensor:
        projected = normed @ self._inputs(expert).float().T
        if self.module.has_bias:
            name = "gate_up_proj_bias" if self.gated else "up_proj_bias"
            projected = projected + required(self.module, name)[expert].float()
        activated: Tensor = self.module._apply_gate(projected) if self.gated else self.module.act_fn(projected)
        return activated

    def _inputs(self, expert: int) -> Tensor:
        weight = self._matrix("gate_up_proj" if self.gated else "up_proj", expert)
        return weight.T if self.module.is_transposed else weight

    def _matrix(self, name: str, expert: int) -> Tensor:
        held = getattr(self.module, name)
        return held.matrix(expert) if isinstance(held, PackedExperts) else required(self.module, name)[expert]


class LayerFfn:
    """Everything feed-forward of one layer, its neurons counted through."""

    def __init__(self, dense: DenseFfn | None, experts: Experts | None) -> None:
        self.dense = dense
        self.experts = experts
        self._dense_width = 0 if dense is None else dense.width
        routed = 0 if experts is None else experts.count * experts.width
        self.width = self._dense_width + routed

    @property
    def gated(self) -> bool:
        """Whether every neuron has a gate."""
        return all(part.gated for part in (self.dense, self.experts) if part is not None)

    def subvalues(self, write: FrozenWrite | None) -> Subvalues:
        """What the neurons write."""
        parts: list[DenseFfn | Experts] = [part for part in (self.dense, self.experts) if part is not None]
        if len(parts) == 1:
            return Subvalues(lambda: parts[0].blocks, write)
        return Subvalues(lambda: [block for part in parts for block in part.blocks], write)

    def unit(self, expert: int | None, index: int) -> int:
        """The number of a neuron. Raises LookupError where the layer has none such."""
        width = self._dense_width if expert is None else 0 if self.experts is None else self.experts.width
        if not 0 <= index < width or (self.experts is not None and expert is not None and expert >= self.experts.count):
            raise LookupError(self._valid())
        return index if expert is None else self._dense_width + expert * width + index

    def name(self, unit: int) -> tuple[int | None, int]:
        """The expert and the index of a neuron."""
        if unit < self._dense_width or self.experts is None:
            return None, unit
        return divmod(unit - self._dense_width, self.experts.width)

    def keys(self, units: Ids, subkey: Subkey) -> Tensor:
        """Neurons' rows of the up or the gate projection, [C, d]."""
        if self.experts is None:
            assert self.dense is not None
            return self.dense.keys(units, subkey)
        return torch.cat([self._key(unit, subkey) for unit in units.tolist()])

    def _key(self, unit: int, subkey: Subkey) -> Tensor:
        """One neuron's, [1, d]."""
        expert, index = self.name(unit)
        if expert is None:
            assert self.dense is not None
            return self.dense.keys(np.array([index]), subkey)
        assert self.experts is not None
        return self.experts.key(expert, index, subkey)[None]

    def coefficients(self, normed: Tensor, routing: Routing | None) -> Tensor:
        """Coefficients [P, N] of every neuron from what the FFN reads, [P, d]."""
        parts = [] if self.dense is None else [self.dense.coefficients(normed)]
        if self.experts is not None:
            assert routing is not None
            parts.append(self.experts.coefficients(normed, routing))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def bias(self, normed: Tensor, routing: Routing | None) -> Tensor | None:
        """What is written beside the neurons, [d] or [P, d]."""
        found = [] if self.dense is None else [self.dense.bias(normed)]
        if self.experts is not None:
            assert routing is not None
            found.append(self.experts.bias(routing))
        parts = [bias for bias in found if bias is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def _valid(self) -> str:
        valid = [f"0 to {self._dense_width - 1}"] if self._dense_width else []
        if self.experts is not None:
            valid.append(f"experts 0 to {self.experts.count - 1} with neurons 0 to {self.experts.width - 1} each")
        return "; ".join(valid)
