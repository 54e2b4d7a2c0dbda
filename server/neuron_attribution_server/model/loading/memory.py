"""How much memory a batch takes beside the weights, so that none is formed that does not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.architectures.packed.modules import unpacked_bytes
from neuron_attribution_server.model.attribution.capped_objectives import CAPPED_AT_ONCE
from neuron_attribution_server.model.attribution.objectives import vectors_at_once
from neuron_attribution_server.model.attribution.position_scores import numbers_held
from neuron_attribution_server.model.attribution.search.value_neurons import BOUNDS_AT_ONCE
from neuron_attribution_server.model.attribution.unembedding import vocabulary_block
from neuron_attribution_server.model.engine.engine import KEPT_BYTES, bytes_per_row, kept_tokens, rows_at_once
from neuron_attribution_server.model.loading.recurrent_memory import recurrent_bytes
from neuron_attribution_server.model.tracing.frozen.sweeps import NUMBERS_AT_ONCE
from neuron_attribution_server.model.tracing.outputs import READ_AT_ONCE
from neuron_attribution_server.tasks.costs import MemoryCost

SHARE = 0.5
"""The part of the free memory that one batch may take: the allocator's rounding and other users need the rest."""
LIBRARIES = 3 << 27
"""Working memory of the matrix libraries and the kernels' caches, and what stays torn in the heap after many requests:
290 MiB of the demo model's worker after 190 random ones."""
ALLOCATOR = 1.5
"""What is taken over what is kept: freed blocks between tensors that live longer."""
PROJECTED_TOKEN = 512
"""A vocabulary token of an answer with its text and score: as objects, as a message, and as bytes on their way out."""
COPIES_OF_COEFFICIENTS = 15
"""Numbers for each neuron of an explained token: captured, read, two scores of query FFN neurons and what passes on the
way to them; 9 to 13 measured."""
COPIES_OF_VALUES = 4
"""Numbers for each that neurons are ranked by: a bound, what it is made of, and what passes on the way to it."""
HELD_COPIES = 14
"""Numbers for each of a vector that is held with others; 8 to 11 measured."""
NUMBERS_OF_A_POSITION = 32
"""Numbers for each source position of a head that is detailed: weight, score, which vector times what, from which base,
what its slope and its reach are."""
SWEPT_COPIES = 5
"""Numbers for each that a sweep holds at once: gradients, products, and what passes on the way to them."""
FROZEN_COPIES = 5
"""Numbers for each neuron of a token that is traced: captured, frozen with its factor and constant, its relevance."""
GRADIENT_COPIES = 6
"""Numbers for each neuron that a token activates, kept for its gradient."""
FUSED_PAIR_COPIES, PAIR_COPIES = 2, 8
"""Attention weights of a trace for each pair: as captured; where attention is not fused, also kept for gradients."""
FLOAT = 4


def memory_cost(view: ModelView) -> MemoryCost:
    """Predicted from the sizes of what is kept, and measured of recurrent mixers; tests compare it with processes."""
    recurrent = recurrent_bytes(view)
    sizes, element = view.sizes, torch.finfo(view.dtype).bits // 8
    width = sizes.key_value_heads * sizes.head_size
    streams = (3 * sizes.layers + 1) * sizes.hidden_size
    forward = 4 * _ffn_width(view) + 8 * sizes.hidden_size
    widest = sizes.ffn_width + sizes.experts * sizes.expert_width
    sources = (element + FLOAT) * sizes.layers * width
    return MemoryCost(
        available=int(SHARE * _free_bytes(view.device)),
        fixed=LIBRARIES
        + unpacked_bytes(view.model, view.device)
        + FLOAT * 4 * vectors_at_once(view.device) * vocabulary_block(view.device)
        + (0 if view.logit_cap is None else 4 * FLOAT * CAPPED_AT_ONCE * sizes.vocabulary),
        per_token=int(ALLOCATOR * (element * forward + recurrent.per_token)),
        per_stream_token=int(ALLOCATOR * element * streams),
        per_source_token=int(ALLOCATOR * sources),
        per_sequence=int(ALLOCATOR * recurrent.per_sequence),
        per_row=2 * bytes_per_row(sizes),
        per_row_token=2 * FLOAT * sizes.layers * sizes.heads,
        per_scored_head=6 * FLOAT * sizes.hidden_size,
        per_head_position=NUMBERS_OF_A_POSITION * FLOAT,
        per_held_position=6 * FLOAT * sizes.hidden_size,
        positions_at_once=numbers_held(view.device) // sizes.hidden_size,
        rows_at_once=rows_at_once(sizes),
        per_projected_token=PROJECTED_TOKEN,
        per_searched_position=int(2 * FLOAT * sizes.layers * sizes.heads * sizes.head_size),
        per_held_vector=HELD_COPIES * FLOAT * sizes.hidden_size,
        per_pattern_position=6 * FLOAT * sizes.layers * sizes.heads,
        heads=sizes.layers * sizes.heads,
        traced=FLOAT * (SWEPT_COPIES * NUMBERS_AT_ONCE + 4 * READ_AT_ONCE * sizes.vocabulary) + _converted_bytes(view),
        per_traced_token=int(
            ALLOCATOR
            * sizes.layers
            * (
                FLOAT * FROZEN_COPIES * widest
                + element * (GRADIENT_COPIES * _ffn_width(view) + 24 * sizes.hidden_size + 8 * width)
            )
        )
        + FLOAT * SWEPT_COPIES * max(sizes.ffn_width, sizes.expert_width, 4 * sizes.hidden_size),
        per_traced_pair=_pair_copies(view) * FLOAT * sizes.layers * sizes.heads,
        per_rerun_token=int(ALLOCATOR * element * (forward + 4 * width)) + FLOAT * sizes.hidden_size,
        per_explained=COPIES_OF_COEFFICIENTS * FLOAT * sizes.layers * widest,
        per_value=COPIES_OF_VALUES * FLOAT,
        values_at_once=BOUNDS_AT_ONCE,
        ffn_neurons=sizes.layers * widest,
        attention_neurons=sizes.layers * sizes.heads * sizes.head_size,
        widest_ffn=widest,
        per_kept_token=FLOAT * sizes.layers * widest,
        kept=KEPT_BYTES * (kept_tokens(view) > 0),
    )


def _converted_bytes(view: ModelView) -> int:
    """What the matrices of a layer take that sweeps read in float32, where they are something else."""
    sizes = view.sizes
    widest = max(sizes.ffn_width, sizes.expert_width, sizes.heads * sizes.head_size)
    return 0 if view.dtype is torch.float32 else 3 * FLOAT * sizes.hidden_size * widest


def _pair_copies(view: ModelView) -> int:
    """How many numbers for each pair of positions and each head a trace holds."""
    has_sinks = any(name.endswith("sinks") for name, _ in view.model.named_parameters())
    capped = getattr(view.config, "attn_logit_softcapping", None) is not None
    return FUSED_PAIR_COPIES if view.spec.uses_attention_interface and not (has_sinks or capped) else PAIR_COPIES


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), _container_bytes())


def _container_bytes() -> int:
    """What the container's memory limit leaves (control groups, version 2); without a limit, no bound."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return sys.maxsize if text == "max" else max(0, int(text) - int(used.read_text()))


def _ffn_width(view: ModelView) -> int:
    """The neurons a token activates in one layer."""
    sizes = view.sizes
    told = (getattr(view.config, name, None) for name in ("num_experts_per_tok", "top_k_experts"))
    chosen = next(filter(None, told), sizes.experts)
    return sizes.ffn_width + min(chosen, sizes.experts) * sizes.expert_width
