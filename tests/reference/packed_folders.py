"""Tiny quantized checkpoints, packed by code of their own, and the models of the numbers that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
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
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
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
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "biased": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, initializer_range=0.15)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96)
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **{name: size for name, size in SHAPE.items() if name != "head_dim"},
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=96,
            shared_expert_intermediate_size=128,
        )
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


def random_folder(folder: Path, scheme: str, sizes: dict[str, int]) -> None:
    """Random bytes that may be of any size: of a Llama, or of a GPT-OSS whose experts are packed."""
    with torch.device("meta"):
        config = {**SHAPE, **sizes}
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**config))
        if scheme == "MXFP4":
            model = GptOssForCausalLM(GptOssConfig(**config, num_experts_per_tok=2))
    tensors: dict[str, Tensor] = {}
    for name, each in model.named_parameters():
        if scheme == "MXFP4" and each.ndim == 3:
            tensors |= {f"{name}_{part}": tensor for part, tensor in _mxfp4_bytes(each.shape).items()}
        elif scheme != "MXFP4" and ".layers." in name and each.ndim == 2:
            parts = RANDOM[scheme](*each.shape)
            tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
        else:
            tensors[name] = torch.ones(each.shape) if each.ndim == 1 else 0.1 * torch.randn(each.shape)
    _write(folder, model, RANDOM_SETTINGS[scheme], tensors)


def _bytes(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(torch.iinfo(dtype).min, torch.iinfo(dtype).max, shape, dtype=dtype)


def _four_bit_bytes(outputs: int, inputs: int) -> dict[str, Tensor]:
    """With scales that are packed themselves."""
    blocks = outputs * inputs // 64
    state = {"blocksize": 64, "dtype": "bfloat16", "nested_blocksize": 256, "nested_offset": 0.05}
    return {
        "weight": _bytes(outputs * inputs // 2, 1),
        "weight.absmax": _bytes(blocks),
        "weight.quant_map": torch.linspace(-1, 1, 16),
        "weight.nested_absmax": torch.full((-(-blocks // 256),), 0.02),
        "weight.nested_quant_map": torch.linspace(-1, 1, 256),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def _gptq_bytes(outputs: int, inputs: int) -> dict[str, Tensor]:
    return {
        "qweight": _bytes(inputs // 8, outputs, dtype=torch.int32),
        "qzeros": _bytes(inputs // 32, outputs // 8, dtype=torch.int32),
        "scales": torch.full((inputs // 32, outputs), 0.01, dtype=torch.float16),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // 32,
    }


def _awq_bytes(outputs: int, inputs: int) -> dict[str, Tensor]:
    return {
        "qweight": _bytes(inputs, outputs // 8, dtype=torch.int32),
        "qzeros": _bytes(inputs // 32, outputs // 8, dtype=torch.int32),
        "scales": torch.full((inputs // 32, outputs), 0.01, dtype=torch.float16),
    }


def _mxfp4_bytes(shape: Iterable[int]) -> dict[str, Tensor]:
    experts, inputs, outputs = shape
    return {
        "blocks": _bytes(experts, outputs, inputs // 32, 16),
        "scales": torch.randint(119, 122, (experts, outputs, inputs // 32), dtype=torch.uint8),
    }


RANDOM: dict[str, Callable[[int, int], dict[str, Tensor]]] = {
    "8 bit": lambda outputs, inputs: {
        "weight": _bytes(outputs, inputs, dtype=torch.int8),
        "SCB": torch.full((outputs,), 0.1),
    },
    "4 bit": _four_bit_bytes,
    "FP8": lambda outputs, inputs: {
        "weight": (0.1 * torch.randn(outputs, inputs)).to(torch.float8_e4m3fn),
        "weight_scale_inv": torch.ones(-(-outputs // 128), -(-inputs // 128)),
    },
    "GPTQ": _gptq_bytes,
    "AWQ": _awq_bytes,
}
RANDOM_SETTINGS: dict[str, dict[str, Any]] = {
    "8 bit": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "4 bit": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "FP8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "GPTQ": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "AWQ": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
    "MXFP4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}


def fp8_folder(folder: Path, family: str) -> PreTrainedModel:
    """8-bit floating point with a scale for every block, unpacked by transformers."""
    _save(folder, plain(family), FP8, lambda matrix: (_fp8(matrix), matrix))
    return AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=torch.float32)


def fp8_experts_folder(folder: Path, family: str = "qwen3_moe") -> PreTrainedModel:
    """The same for experts, each with matrices of its own, and the expert that all share; everything else is plain."""
    model = plain(family)
    tensors = {name: each.detach().clone() for name, each in model.named_parameters()}
    for name in [name for name in tensors if ".experts." in name]:
        prefix, _, kind = name.rpartition(".")
        for expert, matrix in enumerate(tensors.pop(name)):
            parts = zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True)
            for projection, rows in parts if kind == "gate_up_proj" else [(kind, matrix)]:
                packed = _fp8(rows)
                tensors |= {f"{prefix}.{expert}.{projection}.{part}": each for part, each in packed.items()}
    for name in [name for name in tensors if ".shared_expert." in name]:
        tensors |= {name.replace("weight", part): each for part, each in _fp8(tensors.pop(name)).items()}
    plain_ones = [".*self_attn.*", ".*shared_expert_gate", "lm_head"]
    _write(folder, model, {**FP8, "modules_to_not_convert": plain_ones}, tensors)
    return AutoModelForCausalLM.from_pretrained(folder / "packed", dtype=torch.float32)


def gptq_folder(
    folder: Path, family: str, bits: int, checkpoint_format: str = "gptq", *, unembedding: bool = False
) -> PreTrainedModel:
    """Several numbers of a word one after another along the inputs; inputs are in groups in an order of their own."""

    def packed(matrix: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        numbers, zeros, scales, groups = _grouped(matrix, bits, shuffled=True)
        stored = zeros - (checkpoint_format == "gptq")
        qweight = _words(numbers, bits)
        parts = {"qweight": qweight, "qzeros": _words(stored.T, bits).T, "scales": scales, "g_idx": groups}
        unpacked = (numbers - zeros[groups]) * scales.astype(np.float32)[groups]
        return _tensors(parts), torch.from_numpy(unpacked.T.astype(np.float32))

    settings: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True, "sym": False}
    settings |= {"checkpoint_format": checkpoint_format}
    return _save(folder, plain(family), settings, packed, unembedding=unembedding)


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
    *,
    unembedding: bool = False,
) -> PreTrainedModel:
    """The folder, with every projection packed, maybe the unembedding; the model becomes what it stands for."""
    tensors = {name: each.clone() for name, each in model.named_parameters()}
    for name, module in _projections(model, unembedding=unembedding):
        parts, unpacked = packed(module.weight.detach())
        tensors.pop(f"{name}.weight", None)  # a tied one has the embedding's name
        tensors |= {f"{name}.{part}": each.contiguous() for part, each in parts.items()}
        module.weight = nn.Parameter(unpacked)
    _write(folder, model, settings, tensors)
    return model


def _projections(model: PreTrainedModel, *, unembedding: bool) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (unembedding or name != "lm_head"):
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
