"""One forward pass with everything that scoring needs recorded, without patching the model.

The model's own fused attention runs; beside it only the attention rows of the explained positions are computed, so that
no [positions, positions] matrix exists. Batches are padded on the right, which a causal model never sees.

On a CPU a sequence goes through a batch bit for bit as it goes alone. Matrix products round each row alike whatever
the number of rows, but for a handful of rows; fused attention does not, so that each sequence attends by itself.
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
SMALLEST_PASS = 16
"""Positions in the smallest pass: products of fewer than 12 rows rounded otherwise (MKL 2024.2 with AVX-512)."""


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
        return cls(_on_device(sequences, device), _on_device(flat, device), spans)

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
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
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
        scaling = scaling or query.shape[-1] ** -0.5
        self.attention_rows.append(_attention_rows(self.rows, self.lengths, query, key, mask, scaling))


_RECORDING: ContextVar[CapturedStates | None] = ContextVar("recording", default=None)


def prepare_model(model: PreTrainedModel) -> None:
    """Make the model's attention recordable. Without the mask under the same key causality would be lost in silence."""
    AttentionInterface.register(ATTENTION_KEY, _recordable_attention)
    AttentionMaskInterface.register(ATTENTION_KEY, sdpa_mask)
    model.set_attn_implementation(ATTENTION_KEY)


def capture(view: ModelView, sequences: Sequence[Sequence[int]], rows: ExplainedRows) -> CapturedStates:
    """Run the model on token ids and return what it went through. The unembedding is left to scoring."""
    states = CapturedStates(rows, tuple(len(sequence) for sequence in sequences))
    with torch.inference_mode(), _recording(view, states):
        view.model.base_model(input_ids=_padded(sequences, view.device), use_cache=False)
    return states


def _padded(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids [B, T], padded on the right with id 0: a causal model never looks there."""
    length = max(*map(len, sequences), -(-SMALLEST_PASS // len(sequences)))
    return _on_device([[*sequence, *[0] * (length - len(sequence))] for sequence in sequences], device)


def _on_device(ids: Sequence[Any], device: torch.device) -> Tensor:
    """Ids as a tensor. From pinned memory a GPU fetches them by itself, while the next kernels are being launched."""
    tensor = torch.tensor(ids)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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
    states = _RECORDING.get()
    if states is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    states.record_attention(query, key, value, attention_mask, scaling)
    if query.device.type != "cpu" or states.lengths == (query.shape[2],):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output = query.new_zeros(query.transpose(1, 2).shape)
    mask = None if attention_mask is None else attention_mask.expand(len(query), -1, -1, -1)
    for sequence, length in enumerate(states.lengths):
        one = slice(sequence, sequence + 1)
        output[one, :length], _ = sdpa_attention_forward(
            module,
            query[one, :, :length],
            key[one, :, :length],
            value[one, :, :length],
            None if mask is None else mask[one, :, :length, :length],
            scaling=scaling,
            **kwargs,
        )
    return output, None


def _attention_rows(
    rows: ExplainedRows, lengths: Sequence[int], query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """Attention weights [E, H, T] of the explained rows from query [B, H, T, D] and key [B, K, T, D]."""
    heads, key_value_heads, total = query.shape[1], key.shape[1], key.shape[2]
    queries = query.transpose(1, 2)[rows.sequences, rows.positions].float()
    grouped = queries.unflatten(1, (key_value_heads, heads // key_value_heads))
    allowed = _allowed(rows, mask, total)
    weights = torch.zeros(len(queries), heads, total, device=query.device)
    for (sequence, mine), length in zip(rows.spans, lengths, strict=True):
        logits = (grouped[mine] @ key[sequence, :, :length].float().transpose(1, 2) * scaling).flatten(1, 2)
        weights[mine, :, :length] = logits.masked_fill_(~allowed[mine, :, :length], -torch.inf).softmax(-1)
    return weights


def _allowed(rows: ExplainedRows, mask: Tensor | None, length: int) -> Tensor:
    """Where each explained row may look, [E, 1 or H, T]. No mask means that SDPA was told to be causal."""
    if mask is None:
        return torch.arange(length, device=rows.positions.device) <= rows.positions[:, None, None]
    every = mask.expand(len(rows.spans), -1, -1, -1)
    visible: Tensor = every[rows.sequences, :, rows.positions]
    return visible if visible.dtype == torch.bool else visible == 0
