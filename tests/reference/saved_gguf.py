"""A tiny Llama as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from service.fakes import byte_level_tokenizer

from reference.tiny_models import tiny_llama

_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
_BY_VOCABULARY = ("token_embd.weight", "output.weight")


def saved_gguf(path: Path) -> Path:
    """A file that is served like anybody's."""
    model = json.loads(byte_level_tokenizer())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    writer = GGUFWriter(path, "llama")
    _describe_model(writer)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    for name, parameter in tiny_llama().named_parameters():
        tensor = parameter.detach().numpy()
        if _named(name) in _BY_VOCABULARY:
            tensor = np.resize(tensor, (len(vocabulary), tensor.shape[1]))
        writer.add_tensor(_named(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe_model(writer: GGUFWriter) -> None:
    config = tiny_llama().config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _named(name: str) -> str:
    for theirs, ours in _TENSORS.items():
        name = name.replace(theirs, ours)
    return name
