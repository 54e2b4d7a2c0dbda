"""A layer's FFN neurons as linear functions of what their subkey reads.

Of every neuron the factor beside its subkey is frozen: its activation less what it would be with nothing read, over
what is read. That is act(g) where the subkey is up, u act(g) / g where it is the gate, act(z) / z without a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from neuron_attribution.requests import Subkey
from torch import Tensor

from neuron_attribution_server.model.architectures.feed_forward import DenseFfn, Experts, Routing
from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.subvalues import FrozenWrite
from neuron_attribution_server.model.tracing.frozen.reads import FrozenRead


@dataclass(frozen=True, slots=True, eq=False)
class FfnPart:
    """The n neurons of a dense network, or of an expert, at the P positions where they are active.

    A neuron's activation is factor * <key, what is read> + constant; it writes activation * row.
    """

    first: int
    """The number of the first one in its layer."""
    positions: Tensor | None
    """[P], ascending; None means all."""
    rows: Callable[[], Tensor]
    """W_down's rows, [n, d] in float32."""
    keys: Callable[[], Tensor]
    """Subkeys, [n, d] in float32."""
    read: FrozenRead
    write: FrozenWrite | None
    inward: Tensor | float
    """Times an activation, [P, 1]: what goes into the network's own output projection."""
    activations: Tensor
    """[P, n]"""
    factors: Tensor
    """[P, n]"""
    constants: Tensor | None
    """[P, n], biases of norms and projections, and what is activated by nothing; None where there is no such thing."""

    @property
    def count(self) -> int:
        """How many neurons there are."""
        return self.activations.shape[1]

    def has(self, unit: int) -> bool:
        """Whether a neuron of the layer is one of them."""
        return self.first <= unit < self.first + self.count

    def at(self, states: Tensor) -> Tensor:
        """States [..., T, d] at the positions, [..., P, d]."""
        return states if self.positions is None else states[..., self.positions, :]

    def add_to(self, states: Tensor, found: Tensor) -> None:
        """Add what was found at the positions, [..., P, d], to states [..., T, d]."""
        if self.positions is None:
            states += found
        else:
            states[..., self.positions, :] += found

    def places(self, positions: Tensor) -> Tensor:
        """Where positions [n], all of them its own, are among its own."""
        return positions if self.positions is None else torch.searchsorted(self.positions, positions)

    def place(self, position: int) -> int:
        """Where one of its positions is among its own."""
        if self.positions is None:
            return position
        return int(torch.searchsorted(self.positions, torch.tensor(position, device=self.positions.device)))

    def gradients(self, written: Tensor) -> Tensor:
        """Gradients of activations, [..., P, n], from those of the residual stream, [..., P, d]."""
        return (written if self.write is None else self.write.transpose(written)) @ self.rows().T


def ffn_parts(
    layer: LayerView, base: Tensor, routing: Routing | None, scales: tuple[Tensor | None, list[Tensor]], subkey: Subkey
) -> list[FfnPart]:
    """A layer's neurons as they were at T positions, from what the norm before them reads, [T, d].

    `scales` are those of the norm behind the network, [T], and of norms behind its parts.
    """
    found: list[FfnPart] = []
    behind, parts = scales
    overs = [_product(behind, part) for part in parts] or [behind, behind]
    dense_write, experts_write = layer.ffn.part_writes(layer.ffn_write.frozen)
    if layer.ffn.dense is not None and layer.ffn.dense.width:
        read = FrozenRead.of(layer.ffn_norm, base, layer.remaining)
        found.append(_dense(layer.ffn.dense, layer.ffn_norm.normed(base), read, dense_write, overs[0], subkey))
    if layer.ffn.experts is not None and routing is not None:
        first = 0 if layer.ffn.dense is None else layer.ffn.dense.width
        read = FrozenRead.of(layer.experts_norm, base, layer.remaining)
        normed = layer.experts_norm.normed(base)
        found += _experts(layer.ffn.experts, first, normed, routing, read, experts_write, overs[1], subkey)
    return found


def _dense(
    dense: DenseFfn, normed: Tensor, read: FrozenRead, write: FrozenWrite | None, over: Tensor | None, subkey: Subkey
) -> FfnPart:
    up, gate = dense.projected(normed)
    is_gate = subkey is Subkey.GATE and gate is not None
    nothing = torch.zeros_like(up)
    whole = dense.activate(up, gate)
    rest = dense.activate(up, nothing) if is_gate else dense.activate(nothing, gate)
    keyed = gate if is_gate and gate is not None else up
    of_nothing = dense.projected(torch.zeros_like(normed[:1]))[int(is_gate)]
    assert of_nothing is not None
    factors, constants = _frozen(whole, rest, keyed, of_nothing)
    times = 1 / over[:, None] if over is not None else None
    if dense.norm is not None:
        times = _product(times, dense.norm.weight / dense.norm.scale(whole)[:, None])
    share = dense.share(normed)
    times = _product(times, share)
    inward: Tensor | float = 1.0 if over is None else over[:, None]
    inward = inward if share is None else inward / share

    def rows() -> Tensor:
        return dense.blocks[0].float()

    def keys() -> Tensor:
        return dense.key_matrix(subkey)

    return _part(0, None, rows, keys, read, write, inward, (whole, factors, constants), times)


def _experts(
    experts: Experts,
    first: int,
    normed: Tensor,
    routing: Routing,
    read: FrozenRead,
    write: FrozenWrite | None,
    over: Tensor | None,
    subkey: Subkey,
) -> Iterator[FfnPart]:
    columns = experts.key_columns(subkey)
    for expert in checked(routing.indices.unique().tolist()):
        if expert >= experts.count:
            continue
        chosen = routing.indices == expert
        positions = chosen.any(-1).nonzero().squeeze(1)
        share = (routing.weights.float() * chosen).sum(-1)[positions, None]
        reads = normed[positions] * share if experts.weighs_reads else normed[positions]
        projected = experts.projected(reads, expert)
        zeroed = projected.clone()
        zeroed[:, columns] = 0
        of_nothing = experts.projected(torch.zeros_like(reads[:1]), expert)[:, columns]
        whole = experts.activate(projected)
        factors, constants = _frozen(whole, experts.activate(zeroed), projected[:, columns], of_nothing)
        if experts.weighs_reads:
            factors = factors * share
        own = None if over is None else over[positions]
        times = share.new_full((1, 1), experts.multiplier) if experts.weighs_reads else experts.multiplier * share
        times = times if own is None else times / own[:, None]
        yield _part(
            first + expert * experts.width,
            positions,
            partial(_rows, experts, expert),
            partial(experts.key_matrix, expert, subkey),
            read,
            write,
            (1.0 if own is None else own[:, None]) / experts.multiplier,
            (whole, factors, constants),
            times,
        )


def _rows(experts: Experts, expert: int) -> Tensor:
    return experts.block(expert).float()


def _frozen(whole: Tensor, rest: Tensor, keyed: Tensor, of_nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of what the keys read, [P, n], and what is there without it: of biases, and of nothing at all.

    What is not active reads nothing, even where that nothing is a constant less what was read.
    """
    factors = torch.where((keyed == 0) | (whole == 0), 0, (whole - rest) / keyed)
    return factors, factors * of_nothing + torch.where(whole == 0, 0, rest)


def _part(
    first: int,
    positions: Tensor | None,
    rows: Callable[[], Tensor],
    keys: Callable[[], Tensor],
    read: FrozenRead,
    write: FrozenWrite | None,
    inward: Tensor | float,
    neurons: tuple[Tensor, Tensor, Tensor],
    times: Tensor | None,
) -> FfnPart:
    """Activations, factors and constants, all times what stands behind them."""
    activations, factors, constants = neurons
    if times is not None:
        activations, factors, constants = activations * times, factors * times, constants * times
    if read.norm.bias is not None:
        constants = constants + factors * (keys() @ read.norm.bias)
    has_constants = bool(constants.any())
    return FfnPart(
        first, positions, rows, keys, read, write, inward, activations, factors, constants if has_constants else None
    )


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first * second
