"""The models that are verified: Llama's modules by name, and Gemma's norms where they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from neuron_attribution_server.model.loading.sources.demo import demo_folder
from reference.gemma_model import gemma_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Subject:
    """A model as transformers loads it, as the engine is told to, and how its norms are read."""

    load: Callable[..., Any]
    source: Callable[[], str]
    norm_offset: float
    """What is added to the weights of norms."""
    norms_writes: bool
    """Whether norms stand between the blocks and the residual stream."""

    def weight(self, norm: nn.Module) -> Tensor:
        """What a norm multiplies with."""
        return norm.weight.detach() + self.norm_offset

    def attention_norm(self, layer: Any) -> nn.Module | None:
        """The norm that attention's write passes through."""
        return layer.post_attention_layernorm if self.norms_writes else None

    def ffn_norm(self, layer: Any) -> nn.Module | None:
        """The norm that the FFN's write passes through."""
        return layer.post_feedforward_layernorm if self.norms_writes else None


def rms(norm: nn.Module, states: Tensor) -> Tensor:
    """What a norm divides states [..., d] by, [...]."""
    epsilon = getattr(norm, "variance_epsilon", None)
    return (states.square().mean(-1) + (norm.eps if epsilon is None else epsilon)).sqrt()


def _demo(**arguments: object) -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32, **arguments)


def _gemma(**arguments: object) -> Any:
    file = gemma_file()
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **arguments)


SUBJECTS = {
    "demo": Subject(_demo, lambda: "demo", norm_offset=0.0, norms_writes=False),
    "gemma": Subject(_gemma, lambda: str(gemma_file()), norm_offset=1.0, norms_writes=True),
}
