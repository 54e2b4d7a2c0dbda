"""Greedy generation with the served model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from neuron_attribution_server.architectures.model_view import ModelView


def generate(view: ModelView, token_ids: Sequence[int], count: int) -> tuple[int, ...]:
    """The `count` most probable tokens one after another; fewer where the model ends its text."""
    prompt = torch.tensor([token_ids], device=view.device)
    ends = view.model.generation_config.eos_token_id
    generated = view.model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        num_beams=1,
        pad_token_id=ends[0] if isinstance(ends, list) else ends,
    )
    tokens: list[int] = generated[0, len(token_ids) :].tolist()
    return tuple(tokens)
