"""A model's weights in float64 under one set of names: every projection is a matrix whose rows are neurons.

Reads LlamaForCausalLM and GPT2LMHeadModel. Missing biases are zero vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM


@dataclass(frozen=True)
class Norm:
    """A LayerNorm (`centred`) or an RMSNorm."""

    weight: Tensor
    bias: Tensor
    eps: float | None
    """None where there is no norm: nothing is divided."""
    centred: bool

    def centre(self, vectors: Tensor) -> Tensor:
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors

    def scale(self, vectors: Tensor) -> Tensor:
        """s = sqrt(biased variance + eps), or sqrt(mean square + eps). [..., d] -> [..., 1]"""
        if self.eps is None:
            return torch.ones_like(vectors[..., :1])
        return torch.sqrt(self.centre(vectors).square().mean(-1, keepdim=True) + self.eps)

    def fold(self, vectors: Tensor) -> Tensor:
        """The linear part, γ ⊙ c(v)."""
        return self.weight * self.centre(vectors)

    def without_bias(self, vectors: Tensor) -> Tensor:
        return self.fold(vectors) / self.scale(vectors)

    def __call__(self, vectors: Tensor) -> Tensor:
        return self.without_bias(vectors) + self.bias


@dataclass(frozen=True)
class Layer:
    """One layer. Rows: query [H·D, d], key and value [KV·D, d], output [H·D, d], up, gate and down [N, d]."""

    attention_norm: Norm
    ffn_norm: Norm
    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    output: Tensor
    output_bias: Tensor
    up: Tensor
    up_bias: Tensor
    gate: Tensor | None
    gate_bias: Tensor | None
    down: Tensor
    down_bias: Tensor
    names: tuple[int, ...] | None = None
    """How FFN neurons go; by their numbers where None."""
    values_of: int | None = None
    """The layer whose input the values are made of, where that is another one."""

    def name(self, unit: int) -> int:
        """How the FFN neuron in row `unit` goes."""
        return unit if self.names is None else self.names[unit]

    def unit(self, name: int) -> int:
        """The row of the FFN neuron that goes by `name`."""
        return name if self.names is None else self.names.index(name)


@dataclass(frozen=True)
class Weights:
    """A whole model. `positions` [P, d] are GPT-2's learnt positions, `rotary` [D/2] Llama's inverse frequencies."""

    heads: int
    key_value_heads: int
    head_size: int
    """Of the first layer."""
    embedding: Tensor
    positions: Tensor | None
    rotary: Tensor | None
    layers: tuple[Layer, ...]
    activation: Callable[[Tensor], Tensor]
    final_norm: Norm
    unembedding: Tensor
    unembedding_bias: Tensor
    cap: float | None = None
    """c of the soft-cap c tanh(logits / c)."""

    def capped(self, logits: Tensor) -> Tensor:
        """Logits after the soft-cap, where there is one."""
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def key_value_head(self, head: int) -> int:
        """The key/value head that query head `head` shares."""
        return head // (self.heads // self.key_value_heads)

    def size_of_heads(self, layer: int) -> int:
        """D, which may be another in each layer."""
        return len(self.layers[layer].output) // self.heads

    def values_of(self, layer: int) -> int:
        """The layer whose input a layer's values are made of."""
        made = self.layers[layer].values_of
        return layer if made is None else made

    def output_rows(self, layer: int, head: int) -> Tensor:
        """[D, d]"""
        size = self.size_of_heads(layer)
        return self.layers[layer].output[head * size : (head + 1) * size]

    def value_rows(self, layer: int, head: int) -> Tensor:
        """[D, d]"""
        size = self.size_of_heads(layer)
        first = self.key_value_head(head) * size
        return self.layers[layer].value[first : first + size]


def read_weights(model: nn.Module) -> Weights:
    """The float64 weights of a Llama or GPT-2 model, copied."""
    if isinstance(model, LlamaForCausalLM):
        return _llama(model)
    if isinstance(model, GPT2LMHeadModel):
        return _gpt2(model)
    raise TypeError(f"the oracle reads Llama and GPT-2, not {type(model).__name__}")


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64).clone()


def _bias(module: nn.Module) -> Tensor:
    if module.bias is not None:
        return _double(module.bias)
    return torch.zeros(module.weight.shape[0], dtype=torch.float64)


def _rms_norm(module: nn.Module) -> Norm:
    weight = _double(module.weight)
    return Norm(weight, torch.zeros_like(weight), module.variance_epsilon, centred=False)


def _layer_norm(module: nn.LayerNorm) -> Norm:
    return Norm(_double(module.weight), _double(module.bias), module.eps, centred=True)


def _llama(model: LlamaForCausalLM) -> Weights:
    config = model.config
    assert config.hidden_act == "silu"
    assert config.rope_parameters["rope_type"] == "default"
    return Weights(
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_size=model.model.layers[0].self_attn.head_dim,
        embedding=_double(model.model.embed_tokens.weight),
        positions=None,
        rotary=_double(model.model.rotary_emb.inv_freq),
        layers=tuple(_llama_layer(layer) for layer in model.model.layers),
        activation=silu,
        final_norm=_rms_norm(model.model.norm),
        unembedding=_double(model.lm_head.weight),
        unembedding_bias=_bias(model.lm_head),
    )


def _llama_layer(layer: nn.Module) -> Layer:
    attention, ffn = layer.self_attn, layer.mlp
    return Layer(
        attention_norm=_rms_norm(layer.input_layernorm),
        ffn_norm=_rms_norm(layer.post_attention_layernorm),
        query=_double(attention.q_proj.weight),
        query_bias=_bias(attention.q_proj),
        key=_double(attention.k_proj.weight),
        key_bias=_bias(attention.k_proj),
        value=_double(attention.v_proj.weight),
        value_bias=_bias(attention.v_proj),
        output=_double(attention.o_proj.weight).T.contiguous(),
        output_bias=_bias(attention.o_proj),
        up=_double(ffn.up_proj.weight),
        up_bias=_bias(ffn.up_proj),
        gate=_double(ffn.gate_proj.weight),
        gate_bias=_bias(ffn.gate_proj),
        down=_double(ffn.down_proj.weight).T.contiguous(),
        down_bias=_bias(ffn.down_proj),
    )


def _gpt2(model: GPT2LMHeadModel) -> Weights:
    config = model.config
    assert config.activation_function == "gelu_new"
    assert config.scale_attn_weights
    assert not config.scale_attn_by_inverse_layer_idx
    return Weights(
        heads=config.n_head,
        key_value_heads=config.n_head,
        head_size=config.n_embd // config.n_head,
        embedding=_double(model.transformer.wte.weight),
        positions=_double(model.transformer.wpe.weight),
        rotary=None,
        layers=tuple(_gpt2_layer(layer) for layer in model.transformer.h),
        activation=gelu_tanh,
        final_norm=_layer_norm(model.transformer.ln_f),
        unembedding=_double(model.lm_head.weight),
        unembedding_bias=_bias(model.lm_head),
    )


def _gpt2_layer(layer: nn.Module) -> Layer:
    """GPT-2's Conv1D keeps its weight as [inputs, outputs]."""
    query, key, value = _double(layer.attn.c_attn.weight).T.chunk(3)
    query_bias, key_bias, value_bias = _double(layer.attn.c_attn.bias).chunk(3)
    return Layer(
        attention_norm=_layer_norm(layer.ln_1),
        ffn_norm=_layer_norm(layer.ln_2),
        query=query,
        query_bias=query_bias,
        key=key,
        key_bias=key_bias,
        value=value,
        value_bias=value_bias,
        output=_double(layer.attn.c_proj.weight),
        output_bias=_double(layer.attn.c_proj.bias),
        up=_double(layer.mlp.c_fc.weight).T.contiguous(),
        up_bias=_double(layer.mlp.c_fc.bias),
        gate=None,
        gate_bias=None,
        down=_double(layer.mlp.c_proj.weight),
        down_bias=_double(layer.mlp.c_proj.bias),
    )
