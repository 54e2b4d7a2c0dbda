"""One forward pass with everything that scoring needs recorded, without patching the model.

The model's own fused attention runs; beside it only the attention rows of the explained positions are computed, so that
no [positions, positions] matrix exists. Batches are padded on the right, which a causal model never sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from neuron_attribution_server.architectures.model_view import ModelView

ATTENTION_KEY = "neuron_attribution"


@dataclass(frozen=True, slots=True, eq=False)
class ExplainedRows:
    """Which positions of which sequences are explained: `sequences` [E], ascending, and `positions` [E]."""

    sequences: Tensor
    positions: Tensor
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
        return cls(torch.tensor(sequences, device=device), torch.tensor(flat, device=device), spans)

    def of(self, states: Tensor) -> Tensor:
        """The explained rows [E, ...] of states [sequences, positions, ...]."""
        return states[self.sequences, self.positions]


@dataclass(slots=True, eq=False)
class CapturedStates:
    """What one forward pass went through, per layer, in the model's dtype.

    B sequences, T padded positions, E explained rows, H heads, K key/value heads, D head size, N FFN width, d hidden
    size.
    """

    rows: ExplainedRows
    inputs: list[Tensor] = field(default_factory=list)
    """x_l [B, T, d], then x_L."""
    attention_writes: list[Tensor] = field(default_factory=list)
    """A_l [B, T, d]."""
    ffn_writes: list[Tensor] = field(default_factory=list)
    """F_l [B, T, d]."""
    head_outputs: list[Tensor] = field(default_factory=list)
    """The input of attention's output projection at the explained rows, [E, H * D]."""
    coefficients: list[Tensor] = field(default_factory=list)
    """The input of the FFN's output projection at the explained rows, [E, N]."""
    values: list[Tensor] = field(default_factory=list)
    """Value vectors [B, K, T, D]."""
    attention_rows: list[Tensor] = field(default_factory=list)
    """Attention weights from the explained rows, [E, H, T], float32; zero where the row may not look."""

    def record_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> None:
        """Keep the values and the explained rows' attention weights."""
        self.values.append(value)
        self.attention_rows.append(_attention_rows(self.rows, query, key, mask, scaling or query.shape[-1] ** -0.5))


_RECORDING: ContextVar[CapturedStates | None] = ContextVar("recording", default=None)


def prepare_model(model: PreTrainedModel) -> None:
    """Make the model's attention recordable. Without the mask under the same key causality would be lost in silence."""
    AttentionInterface.register(ATTENTION_KEY, _recordable_attention)
    AttentionMaskInterface.register(ATTENTION_KEY, sdpa_mask)
    model.set_attn_implementation(ATTENTION_KEY)


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids [B, T], padded on the right with id 0: a causal model never looks there."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences], device=device)


def capture(view: ModelView, token_ids: Tensor, rows: ExplainedRows) -> CapturedStates:
    """Run the model on token ids [B, T] and return what it went through. The unembedding is left to scoring."""
    states = CapturedStates(rows)
    with torch.inference_mode(), _recording(view, states):
        view.model.base_model(input_ids=token_ids, use_cache=False)
    return states


@contextmanager
def _recording(view: ModelView, states: CapturedStates) -> Iterator[None]:
    token = _RECORDING.set(states)
    handles = _hooks(view, states)
    try:
        yield
    finally:
        _RECORDING.reset(token)
        for handle in handles:
            handle.remove()


def _hooks(view: ModelView, states: CapturedStates) -> list[Any]:
    handles: list[Any] = [view.final_norm_module.register_forward_pre_hook(_input_to(states.inputs), with_kwargs=True)]
    for layer in view.layers:
        handles += [
            layer.module.register_forward_pre_hook(_input_to(states.inputs), with_kwargs=True),
            layer.attention_output.register_forward_pre_hook(
                _input_to(states.head_outputs, states.rows), with_kwargs=True
            ),
            layer.attention_output.register_forward_hook(_output_to(states.attention_writes)),
            layer.ffn_output.register_forward_pre_hook(_input_to(states.coefficients, states.rows), with_kwargs=True),
            layer.ffn_output.register_forward_hook(_output_to(states.ffn_writes)),
        ]
    return handles


def _input_to(destination: list[Tensor], rows: ExplainedRows | None = None) -> Any:  # noqa: ANN401
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        destination.append(states if rows is None else rows.of(states))

    return hook


def _output_to(destination: list[Tensor]) -> Any:  # noqa: ANN401
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        destination.append(output)

    return hook


def _recordable_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    states = _RECORDING.get()
    if states is not None:
        states.record_attention(query, key, value, attention_mask, scaling)
    return output, None


def _attention_rows(rows: ExplainedRows, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention weights [E, H, T] of the explained rows from query [B, H, T, D] and key [B, K, T, D]."""
    heads, key_value_heads, length = query.shape[1], key.shape[1], key.shape[2]
    queries = query.transpose(1, 2)[rows.sequences, rows.positions].float()
    grouped = queries.unflatten(1, (key_value_heads, heads // key_value_heads))
    weights = torch.empty(len(queries), heads, length, device=query.device)
    for sequence, mine in rows.spans:
        logits = grouped[mine] @ key[sequence].float().transpose(1, 2) * scaling
        weights[mine] = logits.flatten(1, 2)
    allowed = _allowed(rows, mask, length)
    return weights.masked_fill_(~allowed, -torch.inf).softmax(-1)


def _allowed(rows: ExplainedRows, mask: Tensor | None, length: int) -> Tensor:
    """Where each explained row may look, [E, 1 or H, T]. No mask means that SDPA was told to be causal."""
    if mask is None:
        return torch.arange(length, device=rows.positions.device) <= rows.positions[:, None, None]
    every = mask.expand(len(rows.spans), -1, -1, -1)
    visible: Tensor = every[rows.sequences, :, rows.positions]
    return visible if visible.dtype == torch.bool else visible == 0
