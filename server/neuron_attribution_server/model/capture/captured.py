"""What one forward pass went through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.feed_forward import Routing
from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.architectures.projections import HeadSizes
from neuron_attribution_server.model.attribution.host import on_device
from neuron_attribution_server.model.capture.attention import attention_rows
from neuron_attribution_server.model.capture.edits import Edits


@dataclass(frozen=True, slots=True, eq=False)
class ExplainedRows:
    """Which positions of which sequences are explained: `sequences` [E], ascending, and `positions` [E].

    `starts` [E] are the numbers of the first rows of their sequences.
    """

    sequences: Tensor
    positions: Tensor
    starts: Tensor
    spans: tuple[tuple[int, slice], ...]
    """Each explained sequence and where its rows are."""

    @classmethod
    def from_counts(cls, positions: Sequence[Sequence[int]], device: torch.device) -> ExplainedRows:
        """The rows of `positions[b]` of each sequence b."""
        ends = list(accumulate(len(row) for row in positions))
        starts = [end - len(row) for end, row in zip(ends, positions, strict=True)]
        spans = tuple((b, slice(start, end)) for b, (start, end) in enumerate(zip(starts, ends, strict=True)))
        sequences = [b for b, row in enumerate(positions) for _ in row]
        flat = [position for row in positions for position in row]
        columns = np.array([sequences, flat, [starts[b] for b in sequences]], dtype=np.int64)
        own, positions_of, starts_of = on_device(columns, device)
        return cls(own, positions_of, starts_of, spans)

    @property
    def device(self) -> torch.device:
        """Where scoring happens, and everything that is captured is kept."""
        return self.sequences.device

    def of(self, states: Tensor) -> Tensor:
        """The explained rows [E, ...] of states [sequences, positions, ...] on any device."""
        sequences, positions = self.sequences.to(states.device), self.positions.to(states.device)
        return states[sequences, positions].to(self.device)

    def on(self, device: torch.device) -> ExplainedRows:
        """The same rows, for states on another device."""
        if device == self.device:
            return self
        return ExplainedRows(self.sequences.to(device), self.positions.to(device), self.starts.to(device), self.spans)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a pass keeps beside what the explained rows themselves have: of a long text it is most of the memory."""

    streams: bool = True
    """The residual stream, and what is written into it, at every position."""
    sources: bool = True
    """The value vectors of every position, and how the explained rows attend to each."""
    coefficients: bool = False
    """What multiplies W_down's rows at every position."""


@dataclass(slots=True, eq=False)
class CapturedStates:
    """What one forward pass went through, per layer, in the model's dtype.

    Where layers multiply the residual stream, all that is recorded of it, states and writes, is times what it is still
    multiplied by: then writes add up to the last state, whatever was written where.

    B sequences, T padded positions, E explained rows, H heads, K key/value heads, D head size, N FFN width, d hidden
    size.
    """

    rows: ExplainedRows
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    shape: tuple[int, ...]
    """B, T."""
    heads: HeadSizes
    """What the heads of every layer fit in: those of smaller ones are followed by zeros."""
    kept: Kept = Kept()
    copies: bool = False
    """Whether the model changes afterwards what its modules returned."""
    edits: Edits | None = None
    """How the pass was intervened in."""
    inputs: list[Tensor] = field(default_factory=list)
    """x_l [B, T, d], then x_L; of the explained rows alone, [E, d], where streams are not kept."""
    attention_writes: list[Tensor] = field(default_factory=list)
    """A_l, in the same way."""
    beside_attention: dict[int, Tensor] = field(default_factory=dict)
    """What of A_l a recurrent mixer beside attention wrote, at the explained rows, [E, d]."""
    ffn_writes: list[Tensor] = field(default_factory=list)
    """F_l, in the same way."""
    attention_scales: list[Tensor] = field(default_factory=list)
    """The scale of the norm that attention's write passes through, [B, T]; empty where no layer has such a norm."""
    ffn_scales: list[Tensor] = field(default_factory=list)
    """The same for the FFN's."""
    part_scales: dict[int, list[Tensor]] = field(default_factory=dict)
    """What coefficients are over: the scales of norms behind a layer's dense network and its experts, [B, T] each."""
    head_outputs: list[Tensor] = field(default_factory=list)
    """The input of attention's output projection at the explained rows, [E, H * D]."""
    coefficients: list[Tensor] = field(default_factory=list)
    """What multiplies W_down's rows at the explained rows, [E, N]."""
    every_coefficient: dict[int, Tensor] = field(default_factory=dict)
    """The same at every position, [B, T, N], of layers without experts, where they are kept."""
    gates: list[Tensor] = field(default_factory=list)
    """What multiplies the mixed heads of the explained rows, [E, H * D], float32; empty where nothing does."""
    values: list[Tensor] = field(default_factory=list)
    """Value vectors [B, K, T, D]; zeros without attention. None where sources are not kept."""
    attention_rows: list[Tensor] = field(default_factory=list)
    """Attention weights from the explained rows, [E, H, T], float32; zero where the row may not look, and without
    attention. None where sources are not kept."""
    experts: dict[nn.Module, int] = field(default_factory=dict)
    """The layer of every module of routed experts."""
    routings: dict[int, Routing] = field(default_factory=dict)
    """Where tokens go in layers with experts, [B, T, k]."""

    def record_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Keep the values and the explained rows' attention weights."""
        if not self.kept.sources:
            return
        self.values.append(self.heads.of_values(self.here(value)))
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        rows = self.rows.on(query.device)
        self.attention_rows.append(self.here(attention_rows(rows, self.lengths, query, key, mask, scaling, **kwargs)))

    def leave_out(self, view: ModelView, layer: LayerView, read: Tensor) -> None:
        """Zeros where a layer that has read [B, T, d] has no attention, writes nothing, or nothing scales its write."""
        sizes, nothing = view.sizes, read.new_zeros(())
        batch, length = read.shape[:2]
        if not layer.has_attention:
            explained = len(self.rows.sequences)
            self.head_outputs.append(nothing.expand(explained, sizes.heads * sizes.head_size))
            if self.kept.sources:
                self.values.append(nothing.expand(batch, sizes.key_value_heads, length, sizes.head_size))
                self.attention_rows.append(nothing.float().expand(explained, sizes.heads, length))
            if view.spec.attention_gate is not None or view.spec.mixed_norm is not None:
                self.gates.append(nothing.float().expand(explained, sizes.heads * sizes.head_size))
        if not layer.attention_write_modules:
            self.attention_writes.append(nothing.expand_as(self.stream(read)))
        if not layer.ffn.width:
            self.ffn_writes.append(nothing.expand_as(self.stream(read)))
        one = torch.ones((), device=read.device).expand(batch, length)
        if view.norms_attention_writes and layer.attention_write.norm is None:
            self.attention_scales.append(one)
        if view.norms_ffn_writes and layer.ffn_write.norm is None:
            self.ffn_scales.append(one)

    def by_position(self, states: Tensor) -> Tensor:
        """States [B, T, ...], from where a module takes them with both dimensions in one."""
        return states if states.shape[:2] == self.shape else states.unflatten(0, self.shape)

    def here(self, states: Tensor) -> Tensor:
        """States where scoring happens: the layers of a model that is spread over devices leave theirs elsewhere."""
        return states.to(self.rows.device)

    def stream(self, states: Tensor) -> Tensor:
        """What is kept of states [B, T, ...] of the residual stream."""
        return self.here(states) if self.kept.streams else self.rows.of(states)

    def of_rows(self, states: Tensor) -> Tensor:
        """The explained rows [E, ...] of what is kept of the residual stream."""
        return self.rows.of(states) if self.kept.streams else states

    def ffn_coefficients(self, view: ModelView, number: int, at: tuple[Any, Tensor] | None = None) -> Tensor:
        """What multiplies W_down's rows at a few places of a layer, [P, N], computed from the residual stream.

        At the explained rows where no others are named. Keeping them for every position would double what a token
        costs.
        """
        layer, inputs, written = view.layers[number], self.inputs[number], self.attention_writes[number]
        if at is None:
            at, inputs, written = (
                (self.rows.sequences, self.rows.positions),
                self.of_rows(inputs),
                self.of_rows(written),
            )
        else:
            inputs, written = inputs[at], written[at]
        routing = None if number not in self.routings else self.routings[number].at(at)
        found = layer.ffn_coefficients(inputs, written, routing)
        changed = found if self.edits is None else self.edits.change_ffn(number, at, found)
        return layer.ffn.over(changed, [scales[at] for scales in self.part_scales.get(number, ())])
