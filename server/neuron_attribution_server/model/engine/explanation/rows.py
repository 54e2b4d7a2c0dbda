"""The rows to explain, and their states as the formulas want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from neuron_attribution.requests import AttributeOptions
from torch import Tensor

from neuron_attribution_server.model.attribution.states import RowStates
from neuron_attribution_server.model.attribution.subvalues import stack_layers
from neuron_attribution_server.model.capture.captured import CapturedStates


@dataclass(frozen=True, slots=True)
class Row:
    """One prediction to explain: which captured row it is, where it is made, of which token, and how."""

    index: int
    sequence: int
    position: int
    target: int
    contrast: int | None
    options: AttributeOptions
    alone: bool = False
    """Whether it is scored by itself."""
    spaced: int | None = None
    """The token of the target's text behind a space, where the target was named without one."""
    scale: float | None = None
    """The scale of the final norm to read it with, where that is not its own."""


def row_states(captured: CapturedStates, rows: Sequence[Row], heads: int) -> RowStates:
    """The states of some captured rows, in float32."""
    indices = torch.tensor([row.index for row in rows], device=captured.rows.positions.device)
    sequences, positions = captured.rows.sequences[indices], captured.rows.positions[indices]

    def at_rows(states: Sequence[Tensor]) -> Tensor:
        return torch.stack([layer[sequences, positions] for layer in states], 1).float()

    values = {sequence: _values(captured, row) for sequence, row in {row.sequence: row for row in rows}.items()}

    def over(states: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """States [E, L, ...] over the scales of the norms they pass through, where there are norms."""
        if not scales:
            return states
        return states / at_rows(scales).view(*states.shape[:2], *(1,) * (states.dim() - 2))

    attention = torch.stack([layer[indices] for layer in captured.attention_rows], 1)
    head_outputs = torch.stack([layer[indices] for layer in captured.head_outputs], 1).float()
    coefficients = stack_layers([layer[indices] for layer in captured.coefficients], 1).float()
    return RowStates(
        inputs=at_rows(captured.inputs),
        attention_writes=at_rows(captured.attention_writes),
        coefficients=over(coefficients, captured.ffn_scales),
        head_outputs=over(head_outputs, captured.attention_scales).unflatten(2, (heads, -1)),
        attention=attention,
        mixing=over(attention, captured.attention_scales),
        values=[values[row.sequence] for row in rows],
        lengths=[row.position + 1 for row in rows],
    )


def _values(captured: CapturedStates, row: Row) -> Tensor:
    """Value vectors [L, K, T, D] of a row's sequence, or where heads are intervened in, each head's [L, H, T, D].

    Interventions act on all explained rows of a sequence alike, so that these share them.
    """
    values = torch.stack([layer[row.sequence] for layer in captured.values])
    factors = None if captured.edits is None else captured.edits.attention_factors(row.sequence, row.position)
    if factors is None:
        return values
    grouped: Tensor = factors.unflatten(1, (values.shape[1], -1))
    return (values[:, :, None] * grouped[:, :, :, None]).flatten(1, 2)


def components(captured: CapturedStates, sequence: int, positions: Tensor) -> Tensor:
    """The residual stream's components at some positions: embedding, attention 0, FFN 0, ...: [P, 2 L + 1, d]."""
    writes = [write for pair in zip(captured.attention_writes, captured.ffn_writes, strict=True) for write in pair]
    return torch.stack([states[sequence, positions] for states in (captured.inputs[0], *writes)], 1).float()
