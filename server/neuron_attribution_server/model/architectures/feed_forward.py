"""Feed-forward networks: dense ones, routed experts, and what a layer has of both.

A layer's neurons are counted through all of it: those of its dense network (or of the shared expert, which every token
passes through) first, then expert 0's, expert 1's, ... A routed neuron's coefficient contains its expert's router
weight and is zero where the expert is not chosen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from neuron_attribution.requests import Subkey
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.norms import NormView
from neuron_attribution_server.model.architectures.packed.modules import PackedExperts
from neuron_attribution_server.model.architectures.parameters import required
from neuron_attribution_server.model.architectures.projections import (
    HeadSizes,
    Projection,
    bias_of,
    shape_of,
    weight_of,
)
from neuron_attribution_server.model.architectures.spec import FeedForward
from neuron_attribution_server.model.attribution.exact_products import products_by_pieces
from neuron_attribution_server.model.attribution.host import Ids
from neuron_attribution_server.model.attribution.subvalues import FrozenWrite, Subvalues

_ARGUMENTS = ("hidden_states", "top_k_index", "top_k_weights")
"""What experts are called with."""


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

    def __init__(self, layer: nn.Module, paths: FeedForward, sizes: HeadSizes, norm: NormView | None) -> None:
        """`norm` is that of the neurons themselves."""
        self.output = layer.get_submodule(paths.output)
        self.width = shape_of(self.output)[1]
        self.gated = paths.gate is not None
        self._norm = norm
        self._join = paths.join
        self._activation = nn.functional.silu if paths.activation is None else layer.get_submodule(paths.activation)
        self._up = Projection(layer.get_submodule(paths.up.module), paths.up.layout, sizes)
        self._gate: Projection | None = None
        if paths.gate is not None:
            self._gate = Projection(layer.get_submodule(paths.gate.module), paths.gate.layout, sizes)
        self._gate_multiplier = 1.0
        if paths.gate_multiplier is not None:
            self._gate_multiplier = float(operator.attrgetter(paths.gate_multiplier)(layer))
        self.reads = layer.get_submodule(paths.up.module)
        """The module that what the network reads goes into."""
        self.weight = None if paths.weight is None else layer.get_submodule(paths.weight)

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Rows of W_down, [N, d]."""
        return OneByOne(1, lambda _: weight_of(self.output).T)

    def keys(self, units: Ids, subkey: Subkey) -> Tensor:
        """Neurons' rows of the up or the gate projection, [C, d]."""
        projection = self._gate if subkey is Subkey.GATE else self._up
        if projection is None:
            raise LookupError("this FFN has no gate")
        rows = projection.rows(units)
        return rows * self._gate_multiplier if subkey is Subkey.GATE else rows

    def coefficients(self, normed: Tensor) -> Tensor:
        """Coefficients [..., N] from what the FFN reads, [..., d]."""
        activated = self._activated(normed)
        if self._norm is not None:
            activated = self._norm.normed(activated)
        share = self.share(normed)
        return activated if share is None else activated * share

    @property
    def norm(self) -> NormView | None:
        """The norm of the neurons themselves, where there is one."""
        return self._norm

    def key_matrix(self, subkey: Subkey) -> Tensor:
        """Every neuron's row of the up or the gate projection, in float32, [N, d]."""
        is_gate = subkey is Subkey.GATE and self._gate is not None
        rows = (self._gate if is_gate and self._gate is not None else self._up).weight.float()
        return rows * self._gate_multiplier if is_gate else rows

    def projected(self, normed: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the up and the gate projection make of what the network reads, [..., N] each."""
        return self._up(normed), None if self._gate is None else self._gate(normed) * self._gate_multiplier

    def _activated(self, normed: Tensor) -> Tensor:
        return self.activate(*self.projected(normed))

    def activate(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """What the neurons make of both, before a norm of theirs, [..., N]."""
        if gate is None:
            found: Tensor = self._activation(up)
        elif self._join is None:
            found = self._activation(gate).to(up.device) * up
        else:
            found = self._join(self._activation, gate, up)
        return found

    def bias(self, normed: Tensor) -> Tensor | None:
        """What is written beside the neurons, [d] or [..., d]."""
        bias, share = bias_of(self.output), self.share(normed)
        return bias if bias is None or share is None else bias * share

    def share(self, normed: Tensor) -> Tensor | None:
        """What everything this network writes is multiplied by, [..., 1], where there is such a thing."""
        return None if self.weight is None else torch.sigmoid(normed @ weight_of(self.weight).float().T)


class ExpertsFacts(NamedTuple):
    """What transformers' experts classes say of themselves: how their 3-D parameters are to be read."""

    has_gate: bool
    has_bias: bool
    is_transposed: bool
    is_concatenated: bool


class Experts:
    """Routed experts: transformers keeps all of a layer's in 3-D parameters."""

    def __init__(
        self,
        module: Any,  # noqa: ANN401 - read by attributes
        multiplier: float = 1.0,
        facts: ExpertsFacts | None = None,
    ) -> None:
        self.module = module
        self.multiplier = multiplier
        """What everything they write is multiplied by afterwards."""
        self._facts: ExpertsFacts = facts or module
        self.count = len(module.down_proj)
        self.gated = self._facts.has_gate
        self.width: int = module.down_proj.shape[1 if self._facts.is_transposed else 2]
        """Neurons of one expert."""
        self.writes: int = module.down_proj.shape[2 if self._facts.is_transposed else 1]
        """Numbers that each writes."""

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Rows of each expert's W_down, [N, d]."""
        if isinstance(self.module.down_proj, PackedExperts):
            return OneByOne(self.count, self.block)
        weight = required(self.module, "down_proj")
        return list(weight if self._facts.is_transposed else weight.transpose(1, 2))

    def block(self, expert: int) -> Tensor:
        """Rows of one expert's W_down, [N, d]."""
        weight = self._matrix("down_proj", expert)
        return weight if self._facts.is_transposed else weight.T

    def key(self, expert: int, index: int, subkey: Subkey) -> Tensor:
        """A neuron's row of its expert's up or gate projection, [d]."""
        if not self.gated and subkey is Subkey.GATE:
            raise LookupError("these experts have no gate")
        second = self.gated and subkey is not Subkey.GATE
        place = index
        if self.gated:
            place = index + second * self.width if self._facts.is_concatenated else 2 * index + second
        return self._inputs(expert)[place].to(torch.float32, copy=True)  # or all of a packed matrix would be kept

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
            found[tokens] = self.multiplier * self._weighed(normed[tokens], share[tokens, None], expert)
        return found

    def bias(self, routing: Routing) -> Tensor | None:
        """What is written beside the neurons: each chosen expert's bias times its weight, [P, d]."""
        if not self._facts.has_bias:
            return None
        biases = required(self.module, "down_proj_bias").float()[routing.indices.clamp_max(self.count - 1)]
        chosen = self.multiplier * routing.weights.float() * (routing.indices < self.count)
        return (chosen[..., None] * biases).sum(-2)

    def taken(
        self, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], sequences: int
    ) -> Callable[[int], tuple[Tensor, Routing]]:
        """What each expert reads of what the module is called with, [sequences, T, d], and where it goes."""
        given = (*args, *(kwargs[name] for name in _ARGUMENTS[len(args) :]))
        reads, indices, weights = (each.reshape(sequences, -1, each.shape[-1]) for each in given)
        return lambda _: (reads, Routing(indices, weights))

    def written(self, output: Tensor, sequences: int, expert: int) -> Tensor:
        """Where what an expert writes is among what the module returns: a view, [sequences, T, d]."""
        del expert
        return output.view(sequences, -1, output.shape[-1])

    weighs_reads = False
    """Whether what an expert reads is weighed, and not what it gives."""

    def _weighed(self, normed: Tensor, share: Tensor, expert: int) -> Tensor:
        """Coefficients [P, N] of what an expert reads, [P, d], with its weight, [P, 1]."""
        return self._activated(normed, expert) * share

    def _activated(self, normed: Tensor, expert: int) -> Tensor:
        return self.activate(self.projected(normed, expert))

    def projected(self, normed: Tensor, expert: int) -> Tensor:
        """What an expert's input projection makes of what it reads: of gates and up rows as they lie, [P, n]."""
        projected = products_by_pieces(normed, self._inputs(expert))
        if self._facts.has_bias:
            name = "gate_up_proj_bias" if self.gated else "up_proj_bias"
            projected = projected + required(self.module, name)[expert].float()
        return projected

    def activate(self, projected: Tensor) -> Tensor:
        """What the neurons make of that, [P, N]."""
        activated: Tensor = self._gated(projected) if self.gated else self.module.act_fn(projected)
        return activated

    def key_columns(self, subkey: Subkey) -> slice:
        """Where the neurons' up rows, or their gates, are among what is projected."""
        if not self.gated:
            return slice(None)
        second = int(subkey is not Subkey.GATE)
        if self._facts.is_concatenated:
            return slice(second * self.width, (second + 1) * self.width)
        return slice(second, None, 2)

    def key_matrix(self, expert: int, subkey: Subkey) -> Tensor:
        """Every neuron's row of its expert's up or gate projection, in float32, [N, d]."""
        return self._inputs(expert)[self.key_columns(subkey)].float()

    def _gated(self, projected: Tensor) -> Tensor:
        activated: Tensor = self.module._apply_gate(projected)
        return activated

    def _inputs(self, expert: int) -> Tensor:
        weight = self._matrix("gate_up_proj" if self.gated else "up_proj", expert)
        return weight.T if self._facts.is_transposed else weight

    def _matrix(self, name: str, expert: int) -> Tensor:
        held = getattr(self.module, name)
        return held.matrix(expert) if isinstance(held, PackedExperts) else required(self.module, name)[expert]


class WeighedExperts(Experts):
    """Experts whose router weighs what they read: all read every token, weighed by zero where they are not chosen.

    A neuron's coefficient is what its expert's activation makes of the weighed input. Its key is the row itself: the
    weight, frozen, is a factor of everything that the key reads.
    """

    weighs_reads = True

    def __init__(self, module: nn.Module, router: nn.Module, multiplier: float = 1.0) -> None:
        facts = ExpertsFacts(has_gate=True, has_bias=False, is_transposed=True, is_concatenated=True)
        super().__init__(module, multiplier, facts)
        self.router = router
        """It returns the weights of all experts first."""

    def routing(self, weights: Tensor) -> Routing:
        """Where tokens go, from what the router returns of each, [..., experts]: the others have weight zero."""
        every = torch.arange(self.count, device=weights.device)
        return Routing(torch.where(weights == 0, self.count, every), weights)

    def taken(
        self, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], sequences: int
    ) -> Callable[[int], tuple[Tensor, Routing]]:
        """As weighed by the router, expert after expert, so that each goes to its own with weight one."""
        given = args[0] if args else kwargs[_ARGUMENTS[0]]
        reads = given.reshape(self.count, sequences, -1, given.shape[-1])
        ones = given.new_ones(*reads.shape[1:3], 1)
        return lambda expert: (reads[expert], Routing(torch.full_like(ones, expert, dtype=torch.long), ones))

    def written(self, output: Tensor, sequences: int, expert: int) -> Tensor:
        """Expert after expert, [sequences, T, d]."""
        return output.view(self.count, sequences, -1, output.shape[-1])[expert]

    def _weighed(self, normed: Tensor, share: Tensor, expert: int) -> Tensor:
        return self._activated(normed * share, expert)

    def _gated(self, projected: Tensor) -> Tensor:
        gate, up = projected.chunk(2, -1)
        activated: Tensor = self.module.act_fn(gate) * up
        return activated


class LayerFfn:
    """Everything feed-forward of one layer, its neurons counted through; there may be none."""

    def __init__(
        self, dense: DenseFfn | None, experts: Experts | None, part_weights: Sequence[Tensor] | None = None
    ) -> None:
        """`part_weights` [d] each are of norms behind the dense network and the experts, where there are such."""
        self.dense = dense
        self.experts = experts
        self._part_weights = part_weights
        self._dense_width = 0 if dense is None else dense.width
        routed = 0 if experts is None else experts.count * experts.width
        self.width = self._dense_width + routed

    @property
    def gated(self) -> bool:
        """Whether every neuron has a gate."""
        return all(part.gated for part in (self.dense, self.experts) if part is not None)

    def subvalues(self, write: FrozenWrite | None) -> Subvalues:
        """What the neurons write."""
        lengths = [] if self.dense is None else [self.dense.width]
        lengths += [] if self.experts is None else [self.experts.width] * self.experts.count
        if self._part_weights is None or self.experts is None:
            return Subvalues(self._blocks, write, lengths=lengths)
        dense, experts = self.part_writes(write)
        return Subvalues(self._blocks, [dense, *[experts] * self.experts.count], lengths=lengths)

    def part_writes(self, write: FrozenWrite | None) -> tuple[FrozenWrite | None, FrozenWrite | None]:
        """What stands between the dense network, and the experts, and the residual stream."""
        if self._part_weights is None or self.experts is None:
            return write, write
        plain = FrozenWrite(torch.ones(()), centred=False)
        dense, experts = ((write or plain).after(weight) for weight in self._part_weights)
        return dense, experts

    def _blocks(self) -> Sequence[Tensor]:
        """What the dense network's neurons write, and each expert's."""
        if self.dense is None or self.experts is None:
            part = self.dense or self.experts
            return [] if part is None else part.blocks
        dense, experts = self.dense.blocks, self.experts.blocks
        return OneByOne(1 + len(experts), lambda number: experts[number - 1] if number else dense[0])

    def is_routed(self, units: Ids) -> Any:  # noqa: ANN401 - an array of booleans
        """Which units are experts' neurons."""
        return units >= self._dense_width

    def over(self, coefficients: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """Coefficients [P, N] over the scales [P] of the norms behind the dense network and the experts."""
        if not scales:
            return coefficients
        dense, experts = (scale.float()[:, None] for scale in scales)
        first = self._dense_width
        return torch.cat([coefficients[:, :first] / dense, coefficients[:, first:] / experts], 1)

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
        found = {unit: self._key(unit, subkey) for unit in sorted(set(units.tolist()))}  # each expert is read once
        return torch.cat([found[unit] for unit in units.tolist()])

    def _key(self, unit: int, subkey: Subkey) -> Tensor:
        """One neuron's, [1, d]."""
        expert, index = self.name(unit)
        if expert is None:
            assert self.dense is not None
            return self.dense.keys(np.array([index]), subkey)
        assert self.experts is not None
        return self.experts.key(expert, index, subkey)[None]

    def coefficients(self, normed: Tensor, routed: Tensor, routing: Routing | None) -> Tensor:
        """Coefficients [P, N] of every neuron from what the dense network and the experts read, [P, d] each."""
        parts = [] if self.dense is None else [self.dense.coefficients(normed)]
        if self.experts is not None:
            assert routing is not None
            parts.append(self.experts.coefficients(routed, routing))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0] if parts else normed[..., :0]

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
        return "; ".join(valid) or "no feed-forward network"
