"""A Llama model in a GGUF file becomes a transformers folder: config.json, model.safetensors, tokenizer files.

Quantised weights are dequantised to float32, so the folder holds exactly the numbers the GGUF file stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tqdm import tqdm

Weight = NDArray[np.float32]

_CONFIG_KEYS = {
    "vocab_size": "llama.vocab_size",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.rope.dimension_count",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}

_TENSOR_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

_LAYER_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_DIGITS_APART = {"type": "Digits", "individual_digits": True}


def convert_llama(source: Path, destination: Path, progress: tqdm[Any]) -> None:
    """Write the model in the GGUF file `source` into the folder `destination`; `progress` counts its tensors.

    Raises ValueError for another architecture than Llama or a tensor it does not know.
    """
    reader = GGUFReader(source)
    if _metadata(reader, "general.architecture") != "llama":
        raise ValueError(f"{source.name} is not a Llama model")
    progress.reset(total=len(reader.tensors))
    weights = dict(_weights(reader, progress))
    config = _config(reader, tied="lm_head.weight" not in weights)
    (destination / "config.json").write_text(json.dumps(config, indent=2))
    save_file(weights, destination / "model.safetensors", metadata={"format": "pt"})
    _convert_tokenizer(source, destination, str(_metadata(reader, "tokenizer.ggml.pre")))


def _metadata(reader: GGUFReader, key: str) -> Any:  # noqa: ANN401 - numbers and texts alike
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _config(reader: GGUFReader, *, tied: bool) -> dict[str, Any]:
    """What LlamaForCausalLM needs to know."""
    config = {name: _metadata(reader, key) for name, key in _CONFIG_KEYS.items()}
    rope = {"rope_type": "default", "rope_theta": _metadata(reader, "llama.rope.freq_base")}
    fixed = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "dtype": "float32"}
    return fixed | config | {"rope_parameters": rope, "tie_word_embeddings": tied}


def _weights(reader: GGUFReader, progress: tqdm[Any]) -> Iterator[tuple[str, Weight]]:
    heads = int(_metadata(reader, "llama.attention.head_count"))
    key_value_heads = int(_metadata(reader, "llama.attention.head_count_kv"))
    rotated = {"attn_q": heads, "attn_k": key_value_heads}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        kind = tensor.name.split(".")[-2]
        if kind in rotated:
            weight = _unpermute(weight, rotated[kind])
        yield _transformers_name(tensor.name), np.ascontiguousarray(weight)
        progress.update()


def _unpermute(weight: Weight, heads: int) -> Weight:
    """Undo llama.cpp's row order: it interleaves the two halves of each head that rotary embedding turns together."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _transformers_name(name: str) -> str:
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if layer and layer[2] in _LAYER_TENSOR_NAMES:
        return f"model.layers.{layer[1]}.{_LAYER_TENSOR_NAMES[layer[2]]}.weight"
    if name in _TENSOR_NAMES:
        return _TENSOR_NAMES[name]
    raise ValueError(f"unknown tensor {name!r} in the GGUF file")


def _convert_tokenizer(source: Path, destination: Path, splitter: str) -> None:
    from transformers import AutoTokenizer  # slow to import, so only when something is converted

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(destination)
    if splitter == "smollm":
        _split_digits(destination / "tokenizer.json")


def _split_digits(path: Path) -> None:
    """SmolLM's tokenizer sets digits apart before anything else; transformers' GGUF conversion leaves that out.

    It shows where several spaces precede a digit.
    """
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [_DIGITS_APART, tokenizer["pre_tokenizer"]]}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
