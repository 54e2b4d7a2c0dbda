"""Attention as transformers' attention interface asks for it, and the weights of single rows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from neuron_attribution_server.model.attribution.host import is_host

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
    def starts(self) -> Tensor:
        """The number of the first row of each row's sequence, [E]."""
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


def sparse_mask(
    module: Any,  # noqa: ANN401
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    indices: Tensor | None = None,
    block_indices: Tensor | None = None,
) -> Tensor | None:
    """The mask, [B, 1 or H, T, T], with what an indexer chose in it, which some models give attention beside it.

    `indices` [B, T, k] are positions, `block_indices` the blocks of them that the module's indexer reads.
    """
    if block_indices is not None:
        at = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device).expand(len(query), -1)
        blocks: Tensor = module.indexer.build_block_mask(
            block_indices, mask, key.shape[2], query.dtype, query.device, at
        )
        return blocks
    if indices is None:
        return mask
    chosen = torch.zeros(*indices.shape[:2], key.shape[2], dtype=torch.bool, device=query.device)
    chosen = chosen.scatter(-1, indices.long(), value=True)[:, None]
    return chosen if mask is None else _visible(mask) & chosen


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
    queries = query.transpose(1, 2)[rows.sequences, rows.positions].float()
    allowed = _allowed(rows, mask, key.shape[2])
    if is_host(query.device):
        return _rows_by_sequence(rows, lengths, queries, key, allowed, scaling, kwargs)
    return _rows_together(rows, queries, key, allowed, scaling, kwargs)


def _rows_by_sequence(
    rows: Rows,
    lengths: Sequence[int],
    queries: Tensor,
    key: Tensor,
    allowed: Tensor,
    scaling: float,
    options: dict[str, Any],
) -> Tensor:
    """Sequence by sequence, of its own length: each is computed bit for bit as it is alone."""
    weights = torch.zeros(*queries.shape[:2], key.shape[2], device=queries.device)
    for (sequence, mine), length in zip(rows.spans, lengths, strict=True):
        one = slice(sequence, sequence + 1)
        found = _weights(
            queries[None, mine].transpose(1, 2),
            key[one, :, :length].float(),
            allowed[None, mine, :, :length].transpose(1, 2),
            scaling,
            options,
        )
        weights[mine, :, :length] = found[0].transpose(0, 1)
    return weights


def _rows_together(
    rows: Rows, queries: Tensor, key: Tensor, allowed: Tensor, scaling: float, options: dict[str, Any]
) -> Tensor:
    """All sequences at once, each with as many rows as the one that has most: few kernels to launch."""
    counts = [span.stop - span.start for _, span in rows.spans]
    most = max(counts)
    if min(counts) == most:
        grid = queries.unflatten(0, (-1, most)), allowed.unflatten(0, (-1, most))
        found = _weights(grid[0].transpose(1, 2), key.float(), grid[1].transpose(1, 2), scaling, options)
        return found.transpose(1, 2).flatten(0, 1)
    slots = torch.arange(len(queries), device=queries.device) - rows.starts
    padded = queries.new_zeros(len(counts), most, *queries.shape[1:])
    visible = allowed.new_ones(len(counts), most, *allowed.shape[1:])
    padded[rows.sequences, slots], visible[rows.sequences, slots] = queries, allowed
    found = _weights(padded.transpose(1, 2), key.float(), visible.transpose(1, 2), scaling, options)
    return found.transpose(1, 2)[rows.sequences, slots]


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
