"""The rows to explain, and their states as the formulas want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from neuron_attribution.requests import Aggregate, AttributeOptions
from torch import Tensor

from neuron_attribution_server.model.attribution.host import Array, columns_on_device
from neuron_attribution_server.model.attribution.states import RowStates
from neuron_attribution_server.model.attribution.subvalues import stack_layers
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.tasks.tasks import AttributeTask


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """The explained tokens of one task that are taken together: those of its answer, then those of another one."""

    task: AttributeTask

    @property
    def weights(self) -> Array:
        """What each row's scores are multiplied by before they are added, [R]."""
        counts = len(self.task.explained), len(self.task.contrast_answer)
        each = [1 / max(1, n) if self.task.options.aggregate is Aggregate.MEAN else 1.0 for n in counts]
        return np.repeat([each[0], -each[1]], counts)


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
    whole: Whole | None = None
    """What it is part of, where several are taken together."""
    explained: bool = True
    """Whether it has an explanation of its own."""


def row_states(captured: CapturedStates, rows: Sequence[Row], heads: int) -> RowStates:
    """The states of some captured rows, in float32."""
    device = captured.rows.device
    (which,) = columns_on_device([np.array([row.index for row in rows])], device)
    sequences, positions = captured.rows.sequences[which], captured.rows.positions[which]
    longest = max(row.position for row in rows) + 1 if captured.kept.sources else 0

    def at_rows(states: Sequence[Tensor]) -> Tensor:
        return torch.stack([layer[sequences, positions] for layer in states], 1).float()

    def of_streams(states: Sequence[Tensor]) -> Tensor:
        return at_rows(states) if captured.kept.streams else torch.stack([layer[which] for layer in states], 1).float()

    def over(states: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """States [E, L, ...] over the scales of the norms they pass through, where there are norms."""
        if not scales:
            return states
        return states / at_rows(scales).view(*states.shape[:2], *(1,) * (states.dim() - 2))

    head_outputs = torch.stack([layer[which] for layer in captured.head_outputs], 1).float()
    coefficients = stack_layers([layer[which] for layer in captured.coefficients], 1).float()
    if captured.kept.sources:
        attention = torch.stack([layer[which, :, :longest] for layer in captured.attention_rows], 1)
    else:
        attention = head_outputs.new_empty(*head_outputs.shape[:2], heads, 0)
    distinct = list(dict.fromkeys(row.sequence for row in rows))
    numbers = [distinct.index(row.sequence) for row in rows]
    return RowStates(
        inputs=of_streams(captured.inputs),
        attention_writes=of_streams(captured.attention_writes),
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
    if not captured.kept.sources:
        sizes = len(captured.head_outputs), captured.heads.key_value_heads, 0, captured.heads.head_size
        return torch.empty(len(distinct), *sizes, device=captured.rows.device)
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
