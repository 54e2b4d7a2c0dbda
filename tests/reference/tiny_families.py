"""A tiny random model of every supported family: two or three layers, hidden size 32, 97 tokens.

Weights are large enough for scores between 0.01 and 1. FFN widths differ from the hidden size, so that nothing fits by
accident; sliding windows are shorter than the prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from neuron_attribution_server.model.loading.text_only import keep_language_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from reference.tiny_wrappers import WRAPPERS, for_text

VOCABULARY = 97
Facts = dict[str, Any]


def _llama(**changes: object) -> Facts:
    facts: Facts = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    return facts | changes


def _gpt(**changes: object) -> Facts:
    facts: Facts = {
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 4,
        "n_inner": 40,
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return facts | changes


def _moe(**changes: object) -> Facts:
    return _llama(num_experts_per_tok=2, moe_intermediate_size=24) | changes


WINDOW = {"sliding_window": 4}
HEADS = {"head_dim": 8}
HALF_ROTARY = {"partial_rotary_factor": 0.5}
TIED = {"tie_word_embeddings": True}
BLOOM = {"n_layer": 2, "hidden_size": 32, "n_head": 4, "vocab_size": VOCABULARY}
GPT_NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 40,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
OPT = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_dim": 40,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
XGLM = {
    "num_layers": 2,
    "d_model": 32,
    "attention_heads": 4,
    "ffn_dim": 40,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
MPT = {"n_layers": 2, "d_model": 32, "n_heads": 4, "expansion_ratio": 2, "vocab_size": VOCABULARY, "max_seq_len": 64}
FALCON = _llama(new_decoder_architecture=False, bias=True, alibi=False, ffn_hidden_size=40)
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
INDEXED = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 16}
ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
GRANITE = {"residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.2, "embedding_multiplier": 3.0}
SECTIONS = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
GEMMA4 = _llama(
    **HEADS,
    **TIED,
    **WINDOW,
    num_hidden_layers=3,
    layer_types=["full_attention", "sliding_attention", "full_attention"],
    num_kv_shared_layers=1,
    global_head_dim=16,
    num_global_key_value_heads=1,
    attention_k_eq_v=True,
    use_double_wide_mlp=True,
    vocab_size_per_layer_input=VOCABULARY,
    hidden_size_per_layer_input=12,
    final_logit_softcapping=10.0,
)
"""The last layer mixes the values of the first, whose heads are larger and fewer than those between them."""

MIXED = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
CONVOLVED = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "mamba_chunk_size": 4,
}
FALCON_H1 = {
    "mamba_d_ssm": 64,
    "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 1.2,
    "ssm_in_multiplier": 0.9,
    "ssm_out_multiplier": 0.7,
    "mlp_multipliers": [0.8, 1.3],
    "key_multiplier": 0.9,
    "lm_head_multiplier": 0.5,
    "embedding_multiplier": 2.0,
}
JAMBA = {
    "num_hidden_layers": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 0,
    "num_experts": 4,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
}
NEMOTRON_H = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 4,
    "n_routed_experts": 4,
    "moe_shared_expert_intermediate_size": 20,
    "rescale_prenorm_residual": False,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
KIMI = {
    "num_local_experts": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "q_lora_rank": None,
}

TINY_FAMILIES: dict[str, tuple[str, Facts]] = {
    "gpt2": ("gpt2", _gpt()),
    "gpt_bigcode": ("gpt_bigcode", _gpt(multi_query=False)),
    "gpt_bigcode, multi-query": ("gpt_bigcode", _gpt(multi_query=True)),
    "gpt_neo": ("gpt_neo", GPT_NEO),
    "gptj": ("gptj", _gpt(rotary_dim=4)),
    "codegen": ("codegen", _gpt(rotary_dim=4)),
    "gpt_neox": ("gpt_neox", _llama(rotary_pct=0.5)),
    "gpt_neox, sequential": ("gpt_neox", _llama(rotary_pct=0.5, use_parallel_residual=False)),
    "bloom": ("bloom", BLOOM),
    "falcon": ("falcon", FALCON | {"multi_query": True, "parallel_attn": True}),
    "falcon, grouped": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, ALiBi": ("falcon", FALCON | {"multi_query": False, "parallel_attn": False, "alibi": True}),
    "mpt": ("mpt", MPT),
    "opt": ("opt", OPT),
    "xglm": ("xglm", XGLM),
    "biogpt": ("biogpt", _llama()),
    "llama": ("llama", _llama()),
    "mistral": ("mistral", _llama(**WINDOW, **HEADS)),
    "ministral": ("ministral", _llama(**WINDOW, **HEADS)),
    "ministral3": ("ministral3", _llama(**HEADS)),
    "qwen2": ("qwen2", _llama()),
    "qwen3": ("qwen3", _llama(head_dim=12)),
    "smollm3": ("smollm3", _llama()),
    "arcee": ("arcee", _llama()),
    "cwm": ("cwm", _llama(**WINDOW, bos_token_id=1, eos_token_id=2)),
    "seed_oss": ("seed_oss", _llama(**HEADS)),
    "helium": ("helium", _llama(**HEADS)),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", _llama(**HEADS)),
    "ernie4_5": ("ernie4_5", _llama(**HEADS)),
    "internlm3": ("internlm3", _llama(**HEADS)),
    "iquestcoder": ("iquestcoder", _llama(**HEADS)),
    "apertus": ("apertus", _llama()),
    "exaone4": ("exaone4", _llama()),
    "hyperclovax": ("hyperclovax", _llama(**HEADS, residual_multiplier=0.5, logits_scaling=0.5)),
    "jais2": ("jais2", _llama()),
    "nanochat": ("nanochat", _llama()),
    "granite_swa": ("granite_swa", _llama(**GRANITE)),
    "gemma": ("gemma", _llama(**HEADS, **TIED)),
    "gemma2": (
        "gemma2",
        _llama(**HEADS, **TIED, **WINDOW, attn_logit_softcapping=5.0, final_logit_softcapping=10.0),
    ),
    "gemma3_text": ("gemma3_text", _llama(**HEADS, **TIED, **WINDOW)),
    "vaultgemma": ("vaultgemma", _llama(**HEADS, **TIED, **WINDOW)),
    "gemma4_text": ("gemma4_text", GEMMA4),
    "gemma4_text, experts": (
        "gemma4_text",
        _llama(
            **HEADS,
            **TIED,
            **WINDOW,
            layer_types=["sliding_attention", "full_attention"],
            hidden_size_per_layer_input=0,
            global_head_dim=8,
            enable_moe_block=True,
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=24,
        ),
    ),
    "gemma4_unified_text": (
        "gemma4_unified_text",
        _llama(**HEADS, **TIED, **WINDOW, global_head_dim=12, layer_types=["sliding_attention", "full_attention"]),
    ),
    "phi": ("phi", _llama(**HALF_ROTARY)),
    "phi3": ("phi3", _llama()),
    "olmo": ("olmo", _llama(clip_qkv=1.0)),
    "olmo2": ("olmo2", _llama()),
    "olmo3": ("olmo3", _llama(**WINDOW)),
    "stablelm": ("stablelm", _llama(**HALF_ROTARY)),
    "stablelm, parallel": ("stablelm", _llama(**HALF_ROTARY, use_parallel_residual=True)),
    "starcoder2": ("starcoder2", _llama()),
    "cohere": ("cohere", _llama(**TIED, logit_scale=0.25)),
    "cohere2": ("cohere2", _llama(**TIED, **WINDOW, logit_scale=0.25)),
    "granite": ("granite", _llama(**GRANITE)),
    "glm": ("glm", _llama(**HEADS, **HALF_ROTARY)),
    "glm4": ("glm4", _llama(**HEADS, **HALF_ROTARY)),
    "nemotron": ("nemotron", _llama(**HEADS, **HALF_ROTARY)),
    "persimmon": ("persimmon", _llama(**HALF_ROTARY)),
    "mixtral": ("mixtral", _moe(num_local_experts=4)),
    "qwen2_moe": (
        "qwen2_moe",
        _moe(num_experts=4, shared_expert_intermediate_size=20, decoder_sparse_step=1, mlp_only_layers=[0]),
    ),
    "qwen3_moe": ("qwen3_moe", _moe(num_experts=4, **HEADS, decoder_sparse_step=1)),
    "olmoe": ("olmoe", _moe(num_experts=4)),
    "granitemoe": ("granitemoe", _moe(num_local_experts=4, **GRANITE)),
    "granitemoeshared": ("granitemoeshared", _moe(num_local_experts=4, shared_intermediate_size=20, **GRANITE)),
    "phimoe": ("phimoe", _moe(num_local_experts=4)),
    "gpt_oss": ("gpt_oss", _moe(num_local_experts=4, **HEADS, **WINDOW)),
    "glm4_moe": ("glm4_moe", _moe(**ROUTED, **HEADS)),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        _moe(moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1, **HEADS),
    ),
    "dots1": ("dots1", _moe(**ROUTED, **HEADS)),
    "minimax_m2": ("minimax_m2", _moe(num_local_experts=4, **HEADS)),
    "deepseek_v2": ("deepseek_v2", _moe(**ROUTED) | LATENT),
    "deepseek_v3": ("deepseek_v3", _moe(**ROUTED, n_group=1, topk_group=1) | LATENT),
    "flex_olmo": ("flex_olmo", _moe(num_experts=4)),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", _moe(num_experts=4, moe_topk=2, **HEADS)),
    "exaone_moe": ("exaone_moe", _moe(num_experts=4, **HEADS)),
    "solar_open": ("solar_open", _moe(n_routed_experts=4, **HEADS)),
    "cohere2_moe": ("cohere2_moe", _moe(num_experts=4, **HEADS, logit_scale=0.5)),
    "afmoe": ("afmoe", _moe(num_experts=4, num_shared_experts=1, **HEADS, **WINDOW, global_attn_every_n_layers=2)),
    "laguna": (
        "laguna",
        _moe(num_experts=4, shared_expert_intermediate_size=20, moe_routed_scaling_factor=1.5, head_dim=12),
    ),
    "laguna, a gate for each dimension": (
        "laguna",
        _moe(num_experts=4, shared_expert_intermediate_size=20, gating="per-element", **HEADS),
    ),
    "hy_v3": ("hy_v3", _moe(num_experts=4, num_shared_experts=1, **HEADS)),
    "aria_text": ("aria_text", _moe(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)),
    "flint": (
        "flint",
        _moe(num_experts=4, shared_expert_intermediate_size=20, mlp_only_layers=[0], **HEADS, **WINDOW),
    ),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        _moe(n_routed_experts=4, head_dim=12, v_head_dim=8, num_key_value_heads=1, **WINDOW)
        | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "kolibri1": ("kolibri1", _moe(num_experts=4, shared_expert_intermediate_size=20, **HEADS, **WINDOW)),
    "granitemoe_swa": ("granitemoe_swa", _moe(num_local_experts=4, shared_intermediate_size=20, **GRANITE)),
    "glm4_moe_lite": ("glm4_moe_lite", _moe(**ROUTED, n_group=1, topk_group=1) | LATENT),
    "youtu": ("youtu", _llama() | LATENT),
    "minicpm3": ("minicpm3", _llama(scale_depth=1.0, dim_model_base=16) | LATENT),
    "axk1": ("axk1", _moe(**ROUTED, n_group=1, topk_group=1) | LATENT),
    "deepseek_v32": ("deepseek_v32", _moe(**ROUTED, n_group=1, topk_group=1) | LATENT | INDEXED),
    "glm_moe_dsa": (
        "glm_moe_dsa",
        _moe(**ROUTED, n_group=1, topk_group=1, indexer_types=["full", "shared"]) | LATENT | INDEXED,
    ),
    "cohere_compass_text": (
        "cohere_compass_text",
        _llama(**TIED, **WINDOW, logit_scale=0.25, layer_types=["sliding_attention", "full_attention"])
        | {"rope_parameters": {"sliding_attention": ROTARY, "full_attention": None}},
    ),
    "ctrl": ("ctrl", _gpt(dff=40)),
    "bitnet": ("bitnet", _llama(hidden_act="silu")),
    "minimax_m3_vl_text": (
        "minimax_m3_vl_text",
        _llama(num_experts_per_tok=2, num_local_experts=4, **HEADS, rotary_dim=4, swiglu_limit=1.0)
        | {"dense_intermediate_size": 24, "shared_intermediate_size": 20, "mlp_layer_types": ["dense", "sparse"]}
        | {"layer_types": ["full_attention", "minimax_m3_sparse"], "index_n_heads": 2, "index_head_dim": 8}
        | {"index_block_size": 2, "index_topk_blocks": 2},
    ),
    "llama4_text": (
        "llama4_text",
        _llama(
            **HEADS,
            intermediate_size=24,
            intermediate_size_mlp=40,
            num_local_experts=4,
            num_experts_per_tok=2,
            moe_layers=[1],
            no_rope_layers=[1, 0],
            attention_chunk_size=4,
        ),
    ),
    "qwen2_vl_text": ("qwen2_vl_text", _llama(rope_parameters=SECTIONS)),
    "qwen2_5_vl_text": ("qwen2_5_vl_text", _llama(rope_parameters=SECTIONS)),
    "qwen3_vl_text": ("qwen3_vl_text", _llama(**HEADS, rope_parameters=SECTIONS)),
    "qwen3_vl_moe_text": (
        "qwen3_vl_moe_text",
        _moe(num_experts=4, **HEADS, decoder_sparse_step=1, rope_parameters=SECTIONS),
    ),
    "mllama_text_model": ("mllama_text_model", _llama(num_hidden_layers=3, cross_attention_layers=[1], bos_token_id=1)),
    "mellum": ("mellum", _moe(num_experts=4, **HEADS)),
    "lfm2": ("lfm2", _llama(**CONVOLVED, block_auto_adjust_ff_dim=False)),
    "lfm2_moe": ("lfm2_moe", _moe(**CONVOLVED, num_experts=4, num_dense_layers=1)),
    "granitemoehybrid": (
        "granitemoehybrid",
        _moe(**MIXED, **MAMBA2, **GRANITE, num_local_experts=4, shared_intermediate_size=20),
    ),
    "granitemoehybrid, biased": (
        "granitemoehybrid",
        _llama(**MIXED, **MAMBA2, **GRANITE, num_local_experts=0, shared_intermediate_size=20, mamba_proj_bias=True),
    ),
    "bamba": ("bamba", _llama(**MAMBA2, num_hidden_layers=3, attn_layer_indices=[1])),
    "falcon_h1": ("falcon_h1", _llama(**MAMBA2, **FALCON_H1)),
    "jamba": ("jamba", _moe(**JAMBA)),
    "nemotron_h": ("nemotron_h", _moe(**NEMOTRON_H, **HEADS)),
    "olmo_hybrid": ("olmo_hybrid", _llama(**MIXED, **DELTA)),
    "kimi_linear": ("kimi_linear", _moe(**MIXED, **KIMI) | LATENT),
    "kimi_linear, attending twice": (
        "kimi_linear",
        _moe(**MIXED, **KIMI) | LATENT | {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
    ),
    "qwen3_next": (
        "qwen3_next",
        _moe(**MIXED, **DELTA, **HEADS, num_experts=4, shared_expert_intermediate_size=20, mlp_only_layers=[0]),
    ),
    "qwen3_5_text": ("qwen3_5_text", _llama(**MIXED, **DELTA, **HEADS)),
    "qwen3_5_moe_text": (
        "qwen3_5_moe_text",
        _moe(**MIXED, **DELTA, **HEADS, num_experts=4, shared_expert_intermediate_size=20),
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        _llama(
            **TIED,
            num_hidden_layers=3,
            intermediate_size=80,
            block_types=["recurrent", "attention", "recurrent"],
            attention_window_size=4,
            logits_soft_cap=10.0,
        ),
    ),
}
"""By what tests call it: the family, and its configuration."""


def tiny_family(name: str, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, of queries and keys large enough that attention is uneven.

    Norms and biases are what they are in a new model, and noise.
    """
    family, facts = TINY_FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # some new models have random biases
        model = _new(family, facts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.3 * noise if parameter.dim() == 1 else _scaled(path, noise))
        scalars = [buffer for path, buffer in model.named_buffers() if path.endswith("layer_scalar")]
        for number, scalar in enumerate(scalars):
            scalar.fill_((0.75, 1.5, 0.5)[number])
    return model.eval()


def _new(family: str, facts: Facts) -> PreTrainedModel:
    """Without the rest of a model that also sees, where no other has such a language model."""
    wrapper = next((kind for kind, (text, *_) in WRAPPERS.items() if text == family), None)
    config = AutoConfig.for_model(family, **facts)
    if wrapper is None or type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = for_text(wrapper, facts)
    keep_language_model(model)
    return model


def _scaled(path: str, noise: torch.Tensor) -> torch.Tensor:
    if any(word in path for word in ("embed", "wte", "wpe", "lm_head", "output_projection")):
        return 0.5 * noise
    large = any(word in path for word in ("q_", "k_", "qkv", "c_attn", "query_key_value", "router", "gate.weight"))
    return noise * (1.5 if large else 1.0) / 32**0.5
