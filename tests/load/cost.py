"""What a request costs, from a model's sizes alone: operations, and memory as the server itself predicts it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from neuron_attribution.results import ModelSizes
from neuron_attribution_server.front_end.scheduling.batches import BatchLimits
from neuron_attribution_server.model.loading.memory import SHARE, memory_cost
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken

DETAILED_HEADS = 10
"""Heads whose source positions are scored, the service's default."""
QUERY_SOURCES = 30
"""Neurons of each kind that the query parts start from, the service's default: so many are ranked at least."""
CANDIDATES = 8
"""Neurons of each kind that are scored beyond those: 76 in all at k = 10 and 616 at k = 300."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Floating point operations a second that are reached: in the forward pass, and in products with the vocabulary."""

    forward: float
    rows: float


def layer_parameters(sizes: ModelSizes) -> int:
    """Parameters that every token goes through: attention and a gated FFN, embeddings apart."""
    attention = 2 * sizes.hidden_size * sizes.head_size * (sizes.heads + sizes.key_value_heads)
    return sizes.layers * (attention + 3 * sizes.hidden_size * sizes.ffn_width)


def forward_operations(sizes: ModelSizes, tokens: int) -> int:
    """Two for each parameter and token; two for each dimension and pair of positions, in scores and in values."""
    pairs = 4 * sizes.layers * sizes.heads * sizes.head_size * tokens * tokens
    return 2 * layer_parameters(sizes) * tokens + pairs


def exact_rows(sizes: ModelSizes, tokens: int, k: int) -> int:
    """Vectors that are read as logits of the whole vocabulary, at most.

    Every head, every base state, the candidates of both kinds, the positions of the strongest heads (of which a long
    prompt has many that are too weak to be), and the projections of the value and query neurons that are returned.
    """
    bases = 2 * sizes.layers + 1
    return (
        sizes.layers * sizes.heads + bases + 2 * (max(k, QUERY_SOURCES) + CANDIDATES) + DETAILED_HEADS * tokens + 3 * k
    )


def scoring_operations(sizes: ModelSizes, tokens: int, k: int) -> int:
    """Two for each row, token of the vocabulary and dimension."""
    return 2 * exact_rows(sizes, tokens, k) * sizes.vocabulary * sizes.hidden_size


def seconds(sizes: ModelSizes, tokens: int, k: int, speed: Speed) -> float:
    """What one request keeps the device busy for."""
    return forward_operations(sizes, tokens) / speed.forward + scoring_operations(sizes, tokens, k) / speed.rows


def weight_bytes(sizes: ModelSizes, dtype: torch.dtype, tied: bool) -> int:
    """The model's weights."""
    vocabulary = sizes.vocabulary * sizes.hidden_size
    return torch.finfo(dtype).bits // 8 * (layer_parameters(sizes) + vocabulary * (1 if tied else 2))


def predicted_memory(sizes: ModelSizes, dtype: torch.dtype, available: int = 0) -> MemoryCost:
    """The server's own prediction for batches, which may take `available` bytes."""
    view: Any = SimpleNamespace(
        sizes=sizes,
        dtype=dtype,
        device=torch.device("cpu"),
        config=None,
        logit_cap=None,
        layers=(),
        model=torch.nn.Module(),
        spec=SimpleNamespace(uses_attention_interface=True),
    )
    return replace(memory_cost(view), available=available)


def batch_bytes(sizes: ModelSizes, dtype: torch.dtype, requests: int, tokens: int) -> int:
    """What the server predicts for a batch of requests that explain their last token."""
    return predicted_memory(sizes, dtype).batch([_task(tokens)] * requests)


def largest_batch(sizes: ModelSizes, dtype: torch.dtype, tokens: int, free: float) -> int:
    """The requests of the largest batch that a server forms by default where `free` bytes are left; at least one."""
    config = ServerConfig(model="")
    memory = predicted_memory(sizes, dtype, available=int(SHARE * free))
    limits = BatchLimits(requests=config.batch_requests, tokens=config.batch_tokens, memory=memory)
    sizes_that_fit = (n for n in range(1, config.batch_requests + 1) if limits.allow([_task(tokens)] * n))
    return max(sizes_that_fit, default=1)


def _task(tokens: int) -> AttributeTask:
    return AttributeTask(token_ids=(0,) * tokens, explained=(ExplainedToken(tokens - 1),))
