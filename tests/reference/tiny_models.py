"""Tiny random models, whose weights are large enough for scores between 0.01 and 1.

The seeds are ones with which the divisors of the query scores do not cancel for the sources of a few prompts, so that
every part of an explanation can be compared to 1e-5 there; a divisor that cancels magnifies the rounding of states.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCABULARY = 97


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    """Grouped-query attention: four heads share two key/value heads."""
    return _randomised(LlamaForCausalLM(_llama_config()), seed)


def tiny_llama_with_biases(seed: int = 153) -> PreTrainedModel:
    """Biases in every projection, heads wider than hidden size / heads, tied unembedding."""
    config = _llama_config(attention_bias=True, mlp_bias=True, head_dim=12, tie_word_embeddings=True)
    return _randomised(LlamaForCausalLM(config), seed)


def tiny_gpt2(seed: int = 910) -> PreTrainedModel:
    """Every bias is nonzero, the final norm's too."""
    config = GPT2Config(
        n_layer=3,
        n_embd=32,
        n_head=4,
        n_inner=48,
        vocab_size=VOCABULARY,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _randomised(GPT2LMHeadModel(config), seed)


TINY_MODELS = {"llama": tiny_llama, "llama-with-biases": tiny_llama_with_biases, "gpt2": tiny_gpt2}


def _llama_config(**changes: object) -> LlamaConfig:
    facts = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**(facts | changes))


def _randomised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in [m.weight]}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in norms:
            values = 1 + 0.3 * noise
        elif name.endswith("bias"):
            values = 0.3 * noise
        else:
            values = noise * _deviation(model, name, parameter)
        with torch.no_grad():
            parameter.copy_(values)
    return model.eval()


def _deviation(model: PreTrainedModel, name: str, parameter: nn.Parameter) -> float:
    """Embeddings of size one; projections keep sizes but for queries and keys, so that attention is uneven."""
    size = model.config.hidden_size
    if "embed" in name or "wte" in name or "wpe" in name or "lm_head" in name:
        return 0.5
    if "q_proj" in name or "k_proj" in name or "c_attn" in name:
        return 1.5 / size**0.5
    return 1.0 / size**0.5
