"""The rows to explain, and their states as the formulas want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from neuron_attribution.requests import AttributeOptions
from torch import Tensor

from neuron_attribution_server.model.attribution.host import columns_on_device
from neuron_attribution_server.model.attribution.states import RowStates
from neuron_attribution_server.model.attribution.subvalues import stack_layers
from neuron_attribution_server.model.capture.captured import CapturedStates


@dataclass(frozen=True, slots=True)
class Row:
    """One prediction to explain: which captured row it is, where it is made, of which token, and how."""

    index: int
    sequence: int
    position: int
    target: int | None
    """The model's own most probable token where none is given."""
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
    device = captured.rows.device
    (which,) = columns_on_device([np.array([row.index for row in rows])], device)
    sequences, positions = captured.rows.sequences[which], captured.rows.positions[which]
    longest = max(row.position for row in rows) + 1

    def at_rows(states: Sequence[Tensor]) -> Tensor:
        return torch.stack([layer[sequences, positions] for layer in states], 1).float()

    def over(states: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """States [E, L, ...] over the scales of the norms they pass through, where there are norms."""
        if not scales:
            return states
        return states / at_rows(scales).view(*states.shape[:2], *(1,) * (states.dim() - 2))

    attention = torch.stack([layer[which, :, :longest] for layer in captured.attention_rows], 1)
    head_outputs = torch.stack([layer[which] for layer in captured.head_outputs], 1).float()
    coefficients = stack_layers([layer[which] for layer in captured.coefficients], 1).float()
    distinct = list(dict.fromkeys(row.sequence for row in rows))
    numbers = [distinct.index(row.sequence) for row in rows]
    return RowStates(
        inputs=at_rows(captured.inputs),
        attention_writes=at_rows(captured.attention_writes),
        coefficients=over(coefficients, captured.ffn_scales),
        head_outputs=over(head_outputs, captured.attention_scales).unflatten(2, (heads, -1)),
        attention=attention,
        mixing=over(attention, captured.attention_scales),
        values=_values(captured, distinct, longest),
        sequences=columns_on_device([np.array(numbers)], device)[0],
        gates=_gates(captured, rows, which, heads),
        lengths=[row.position + 1 for row in rows],
        apart=len(distinct) == len(rows),
    )


def _values(captured: CapturedStates, distinct: Sequence[int], longest: int) -> Tensor:
    """Value vectors of sequences, [S, L, K, T, D]."""
    every = list(distinct) == list(range(len(captured.lengths)))
    which = slice(None) if every else columns_on_device([np.array(distinct)], captured.rows.device)[0]
    return torch.stack([layer[which, :, :longest] for layer in captured.values], 1)


def _gates(captured: CapturedStates, rows: Sequence[Row], which: Tensor, heads: int) -> Tensor | None:
    """What multiplies what heads mix, [E, L, H, D], or None: the model's gates, and interventions on heads."""
    gates = None
    if captured.gates:
        gates = torch.stack([layer[which] for layer in captured.gates], 1).unflatten(2, (heads, -1))
    if captured.edits is None:
        return gates
    some = {row.sequence: row.position for row in rows}  # all explained rows of a sequence are changed alike
    factors = {sequence: captured.edits.attention_factors(sequence, at) for sequence, at in some.items()}
    changed = [each for each in factors.values() if each is not None]
    if not changed:
        return gates
    plain = torch.ones_like(changed[0])
    by_row = [factors[row.sequence] for row in rows]
    stacked = torch.stack([plain if each is None else each for each in by_row])
    return stacked if gates is None else stacked * gates


def components(captured: CapturedStates) -> list[Tensor]:
    """The residual stream's components: embedding, attention 0, FFN 0, ...: 2 L + 1 of [B, T, d]."""
    writes = zip(captured.attention_writes, captured.ffn_writes, strict=True)
    return [captured.inputs[0], *(write for pair in writes for write in pair)]
