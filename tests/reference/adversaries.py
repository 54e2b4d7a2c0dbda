"""Tiny random models with weights chosen to make bounds and float32 suffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

HEADS, KEY_VALUE_HEADS, HEAD_SIZE = 4, 2, 4
HIDDEN_SIZE = HEADS * HEAD_SIZE


@dataclass(frozen=True)
class Recipe:
    """A model: its family (llama or gpt2), its sizes, the seed of its weights, and what is done to them."""

    family: str
    layers: int
    ffn_width: int
    vocabulary: int
    seed: int
    twists: tuple[str, ...] = ()


def cook(recipe: Recipe) -> PreTrainedModel:
    """Random weights first, then each twist in turn."""
    model = LlamaForCausalLM(_llama(recipe)) if recipe.family == "llama" else GPT2LMHeadModel(_gpt2(recipe))
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in name or "ln_" in name
            parameter.copy_(1 + 0.3 * noise if norm and name.endswith("weight") else noise * 0.4)
        for twist in recipe.twists:
            TWISTS[twist](_Parts(model, generator))
    return model.eval()


class _Parts:
    """The weights that twists change; every list has one entry a layer and every matrix its neurons as rows."""

    def __init__(self, model: PreTrainedModel, generator: torch.Generator) -> None:
        llama = isinstance(model, LlamaForCausalLM)
        layers = model.model.layers if llama else model.transformer.h
        self.generator = generator
        self.embedding: Tensor = model.get_input_embeddings().weight.data
        self.unembedding: Tensor = model.get_output_embeddings().weight.data
        self.up = [_rows(layer.mlp.up_proj if llama else layer.mlp.c_fc) for layer in layers]
        self.gate = [_rows(layer.mlp.gate_proj) for layer in layers] if llama else []
        self.up_bias = [] if llama else [layer.mlp.c_fc.bias.data for layer in layers]
        self.down = [_rows(layer.mlp.down_proj if llama else layer.mlp.c_proj).T for layer in layers]
        self.query = [_rows(layer.self_attn.q_proj) if llama else _rows(layer.attn.c_attn) for layer in layers]
        self.output = [_rows(layer.self_attn.o_proj if llama else layer.attn.c_proj).T for layer in layers]
        self.writes = [*self.down, *self.output]
        self.biases = [] if llama else [module.bias.data for x in layers for module in (x.mlp.c_proj, x.attn.c_proj)]
        self.positions = [] if llama else [model.transformer.wpe.weight.data]

    def copy_neuron(self, layer: int, source: int, copy: int) -> None:
        for matrices in (self.up, self.gate, self.up_bias, self.down):
            if matrices:
                matrices[layer][copy] = matrices[layer][source]

    def some(self, count: int, most: int) -> list[int]:
        """`count` different numbers below `most`, or all of them."""
        return torch.randperm(most, generator=self.generator)[:count].tolist()


def _huge(parts: _Parts) -> None:
    """Coefficients of thousands, in pairs that cancel: the residual stream stays small, the neurons do not."""
    for layer, down in enumerate(parts.down):
        for neuron, factor in zip(parts.some(3, len(down) - 1), (1e2, 1e3, 1e4), strict=False):
            down[neuron] *= factor
            parts.copy_neuron(layer, neuron, neuron + 1)
            down[neuron + 1] = -down[neuron]


def _dominant(parts: _Parts) -> None:
    """Coefficients of thousands that nothing cancels: they drown everything else."""
    for up in parts.up:
        up[parts.some(2, len(up))] *= 3e3


def _tied(parts: _Parts) -> None:
    """Copied neurons and heads."""
    for layer, up in enumerate(parts.up):
        first, *copies = parts.some(5, len(up))
        for copy in copies:
            parts.copy_neuron(layer, first, copy)
        for matrix in (parts.query[layer], parts.output[layer]):
            # Heads 0 and 1 share their key/value head; in GPT-2 only the query and the output are shared.
            matrix[HEAD_SIZE : 2 * HEAD_SIZE] = matrix[:HEAD_SIZE]


def _zero(parts: _Parts) -> None:
    """Neurons that write nothing, neurons that are never active, a head that writes nothing."""
    for layer, down in enumerate(parts.down):
        down[parts.some(4, len(down))] = 0
        parts.up[layer][parts.some(4, len(down))] = 0
        parts.output[layer][:HEAD_SIZE] = 0


def _faint(parts: _Parts) -> None:
    """A residual stream so small that the final norm's epsilon is most of its scale."""
    for tensor in (parts.embedding, *parts.positions, *parts.writes, *parts.biases):
        tensor.mul_(1e-4)


def _duplicate_tokens(parts: _Parts) -> None:
    """Tokens with the same unembedding row."""
    half = len(parts.unembedding) // 2
    parts.unembedding[half : 2 * half] = parts.unembedding[:half]


def _saturated(parts: _Parts) -> None:
    """Predictions with a probability of almost one."""
    parts.unembedding *= 30


TWISTS: dict[str, Callable[[_Parts], None]] = {
    "huge": _huge,
    "dominant": _dominant,
    "tied": _tied,
    "zero": _zero,
    "faint": _faint,
    "duplicate tokens": _duplicate_tokens,
    "saturated": _saturated,
}


def _rows(module: nn.Module) -> Tensor:
    """[output, input]; transformers' Conv1D stores the transpose."""
    weight: Tensor = module.weight.data
    return weight.T if isinstance(module, Conv1D) else weight


def _llama(recipe: Recipe) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=recipe.layers,
        hidden_size=HIDDEN_SIZE,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        intermediate_size=recipe.ffn_width,
        vocab_size=recipe.vocabulary,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )


def _gpt2(recipe: Recipe) -> GPT2Config:
    return GPT2Config(
        n_layer=recipe.layers,
        n_embd=HIDDEN_SIZE,
        n_head=HEADS,
        n_inner=recipe.ffn_width,
        vocab_size=recipe.vocabulary,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
