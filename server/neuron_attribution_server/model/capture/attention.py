"""Attention as transformers' attention interface asks for it, and the weights of single rows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

QUERIES_AT_ONCE = 256
"""Positions whose attention weights exist at once where fused attention cannot be used."""


class Rows(Protocol):
    """Which positions of which sequences are explained; see captured.ExplainedRows."""

    @property
    def sequences(self) -> Tensor:
        """[E], ascending."""
        ...

    @property
    def positions(self) -> Tensor:
        """[E]."""
        ...

    @property
    def spans(self) -> tuple[tuple[int, slice], ...]:
        """Each explained sequence and where its rows are."""
        ...


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    """What attention mixes, [B, T, H, D], from query [B, H, T, D], key and value [B, K, T, D]."""
    if kwargs.get("softcap") is None and kwargs.get("s_aux") is None:
        output: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)[0]
        return output
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    past = key.shape[2] - query.shape[2]
    blocks = []
    for start in range(0, query.shape[2], QUERIES_AT_ONCE):
        block = slice(start, min(start + QUERIES_AT_ONCE, query.shape[2]))
        positions = torch.arange(past + block.start, past + block.stop, device=query.device)
        allowed = _causal(positions, key.shape[2]) if mask is None else _visible(mask[:, :, block, : key.shape[2]])
        weights = _weights(query[:, :, block].float(), key.float(), allowed, scaling, kwargs)
        grouped = weights.to(value.dtype).unflatten(1, (value.shape[1], -1))
        blocks.append((grouped @ value[:, :, None]).flatten(1, 2).transpose(1, 2))
    return torch.cat(blocks, 1)


def attention_rows(
    rows: Rows,
    lengths: Sequence[int],
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    """Attention weights [E, H, T] of the explained rows from query [B, H, T, D] and key [B, K, T, D]."""
    heads, total = query.shape[1], key.shape[2]
    queries = query.transpose(1, 2)[rows.sequences, rows.positions].float()
    allowed = _allowed(rows, mask, total)
    weights = torch.zeros(len(queries), heads, total, device=query.device)
    for (sequence, mine), length in zip(rows.spans, lengths, strict=True):
        one = slice(sequence, sequence + 1)
        found = _weights(
            queries[None, mine].transpose(1, 2),
            key[one, :, :length].float(),
            allowed[None, mine, :, :length].transpose(1, 2),
            scaling,
            kwargs,
        )
        weights[mine, :, :length] = found[0].transpose(0, 1)
    return weights


def _weights(query: Tensor, key: Tensor, allowed: Tensor, scaling: float, options: dict[str, Any]) -> Tensor:
    """Attention weights [B, H, Q, T] of query [B, H, Q, D] and key [B, K, T, D]: scaled, capped, masked, with sinks."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    logits = (grouped @ key[:, :, None].transpose(3, 4) * scaling).flatten(1, 2)
    if options.get("softcap") is not None:
        logits = torch.tanh(logits / options["softcap"]) * options["softcap"]
    logits = logits.masked_fill(~allowed, -torch.inf)
    sinks = options.get("s_aux")
    if sinks is None:
        weights: Tensor = logits.softmax(-1)
        return weights
    column = sinks.detach().float().view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
    return torch.cat([logits, column], -1).softmax(-1)[..., :-1]


def _allowed(rows: Rows, mask: Tensor | None, length: int) -> Tensor:
    """Where each explained row may look, [E, 1 or H, T]. No mask means that SDPA was told to be causal."""
    if mask is None:
        return _causal(rows.positions, length)[:, None]
    every = mask.expand(len(rows.spans), -1, -1, -1)
    return _visible(every[rows.sequences, :, rows.positions])


def _causal(positions: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=positions.device) <= positions[:, None]


def _visible(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0
