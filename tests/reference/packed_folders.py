"""Tiny quantized checkpoints, packed by code of their own, and the models of the numbers that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from service.fakes import SIZES
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from reference.saved_models import save_tokenizer

SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": SIZES.vocabulary,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}
GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 64, "vocab_size": SIZES.vocabulary}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "biased": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, initializer_range=0.15)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96)
    ),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)),
}
NESTED = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
BITSANDBYTES: dict[str, dict[str, Any]] = {
    "8 bit": {"load_in_8bit": True},
    "4 bit": {"load_in_4bit": True},
    "4 bit nested": {"load_in_4bit": True, **NESTED},
}
FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 16]}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def plain(family: str) -> PreTrainedModel:
    """A model of random weights, every time the same, with no bias that is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[family]().eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model


def bitsandbytes_folder(folder: Path, family: str, scheme: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Packed by bitsandbytes, and unpacked by it."""
    plain(family).save_pretrained(folder / "plain")
    config = BitsAndBytesConfig(**BITSANDBYTES[scheme])
    packed = AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=config, dtype=dtype)
    packed.save_pretrained(folder / "packed")
    save_tokenizer(folder / "packed")
    return AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=torch.float32).dequantize().float()


def eight_bit_folder(folder: Path, sizes: dict[str, int]) -> None:
    """Random bytes that bitsandbytes would have packed so, of a Llama."""
    config = LlamaConfig(**{**SHAPE, **sizes})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tensors = {}
    for name, each in model.named_parameters():
        if ".layers." in name and each.ndim == 2:
            tensors[name] = torch.randint(-127, 128, each.shape, dtype=torch.int8)
            tensors[name.replace("weight", "SCB")] = torch.full((len(each),), 0.1)
        else:
            tensors[name] = torch.ones(each.shape) if each.ndim == 1 else 0.1 * torch.randn(each.shape)
    _write(folder, model, {"quant_method": "bitsandbytes", "load_in_8bit": True}, tensors)


def fp8_folder(folder: Path, family: str) -> PreTrainedModel:
    """8-bit floating point with a scale for every block, unpacked by transformers."""
    _save(folder, plain(family), FP8, lambda matrix: (_fp8(matrix), matrix))
    return AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=torch.float32)


def fp8_experts_folder(folder: Path) -> PreTrainedModel:
    """The same for experts, each with matrices of its own, and everything else plain."""
    model = plain("qwen3_moe")
    tensors = {name: each.detach().clone() for name, each in model.named_parameters()}
    for name in [name for name in tensors if ".experts." in name]:
        prefix, _, kind = name.rpartition(".")
        for expert, matrix in enumerate(tensors.pop(name)):
            parts = zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True)
            for projection, rows in parts if kind == "gate_up_proj" else [(kind, matrix)]:
                packed = _fp8(rows)
                tensors |= {f"{prefix}.{expert}.{projection}.{part}": each for part, each in packed.items()}
    _write(folder, model, {**FP8, "modules_to_not_convert": [".*self_attn.*", "lm_head"]}, tensors)
    return AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=torch.float32)


def gptq_folder(folder: Path, family: str, bits: int, checkpoint_format: str = "gptq") -> PreTrainedModel:
    """Several numbers of a word one after another along the inputs; inputs are in groups in an order of their own."""

    def packed(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        numbers, zeros, scales, groups = _grouped(matrix, bits, shuffled=True)
        stored = zeros - (checkpoint_format == "gptq")
        qweight = _words(numbers, bits)
        parts = {"qweight": qweight, "qzeros": _words(stored.T, bits).T, "scales": scales, "g_idx": groups}
        unpacked = (numbers - zeros[groups]) * scales.astype(np.float32)[groups]
        return _tensors(parts), torch.from_numpy(unpacked.T.astype(np.float32))

    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True, "sym": False}
    return _save(folder, plain(family), {**settings, "checkpoint_format": checkpoint_format}, packed)


def awq_folder(folder: Path, family: str) -> PreTrainedModel:
    """Eight numbers of a word along the outputs, the even ones first."""

    def packed(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        numbers, zeros, scales, groups = _grouped(matrix, 4, shuffled=False)
        order = np.concatenate([start + np.array(AWQ_ORDER) for start in range(0, numbers.shape[1], 8)])
        qweight, qzeros = (_words(each[:, order].T, 4).T for each in (numbers, zeros))
        unpacked = (numbers - zeros[groups]) * scales.astype(np.float32)[groups]
        parts = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
        return _tensors(parts), torch.from_numpy(unpacked.T.astype(np.float32))

    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    return _save(folder, plain(family), settings, packed)


def mxfp4_folder(folder: Path) -> PreTrainedModel:
    """Experts of random bytes with exponents, unpacked by transformers."""
    model = plain("gpt_oss")
    tensors = {name: each.clone() for name, each in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 125, shape, generator=generator, dtype=torch.uint8)
    _write(folder, model, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, tensors)
    return AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=torch.float32)


def _fp8(matrix: Tensor) -> dict[str, Tensor]:
    high, wide = FP8["weight_block_size"]
    blocks = matrix.unflatten(0, (-1, high)).unflatten(2, (-1, wide))
    scales = blocks.abs().amax((1, 3)) / 448
    numbers = (blocks / scales[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale_inv": scales}


def _save(
    folder: Path,
    model: PreTrainedModel,
    settings: dict[str, Any],
    packed: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]],
) -> PreTrainedModel:
    """The folder, with every projection but the unembedding packed; the model becomes what it stands for."""
    tensors = {name: each.clone() for name, each in model.named_parameters()}
    for name, module in _projections(model):
        parts, unpacked = packed(module.weight.detach())
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{part}": each.contiguous() for part, each in parts.items()}
        module.weight = nn.Parameter(unpacked)
    _write(folder, model, settings, tensors)
    return model


def _projections(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            yield name, module


def _write(folder: Path, model: PreTrainedModel, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    path = folder / "packed"
    path.mkdir(parents=True)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {**json.loads(model.config.to_json_string()), "quantization_config": settings}
    (path / "config.json").write_text(json.dumps(config))
    save_tokenizer(path)


def _grouped(matrix: Tensor, bits: int, *, shuffled: bool) -> tuple[np.ndarray, ...]:
    """Numbers [inputs, outputs], zeros and scales [groups, outputs], and the group of each input."""
    values = matrix.numpy().T.astype(np.float64)
    groups = np.arange(len(values)) // 32
    if shuffled:
        groups = np.random.default_rng(0).permutation(groups)
    numbers = np.zeros(values.shape, np.int64)
    zeros, scales = [], []
    for group in range(groups.max() + 1):
        mine = values[groups == group]
        scale = ((mine.max(0) - mine.min(0)) / (2**bits - 1)).astype(np.float16)
        zero = np.clip(np.round(-mine.min(0) / scale), 1, 2**bits - 1).astype(np.int64)
        numbers[groups == group] = np.clip(np.round(mine / scale) + zero, 0, 2**bits - 1)
        zeros.append(zero)
        scales.append(scale)
    return numbers, np.stack(zeros), np.stack(scales), groups.astype(np.int32)


def _words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Words of 32 bits, of so many numbers of the first dimension each, the first in the lowest bits."""
    each = 32 // bits
    found = np.zeros((len(numbers) // each, numbers.shape[1]), np.uint32)
    for place in range(each):
        found |= numbers[place::each].astype(np.uint32) << np.uint32(bits * place)
    return found.view(np.int32)


def _tensors(parts: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}
