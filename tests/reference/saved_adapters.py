"""Adapters of tiny models as folders that peft has saved, none of whose tensors is zero."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

WEIGHTS = "adapter_model.safetensors"


def save_adapter(base: Path, folder: Path, config: PeftConfig) -> Path:
    """An adapter of the model in `base`, with random tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(plain_model(base), config)
        generator = torch.Generator().manual_seed(7)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
            elif parameter.requires_grad:
                parameter.data *= 1.2
        adapted.save_pretrained(folder)
    return folder


def change_tensors(folder: Path, **changes: Any) -> None:
    """Rewrite an adapter's tensors: `drop` those with a name's part, add `extra` ones, `fill` all with a number."""
    tensors = load_file(folder / WEIGHTS)
    if dropped := changes.get("drop"):
        tensors = {name: tensor for name, tensor in tensors.items() if dropped not in name}
    for name, tensor in changes.get("extra", {}).items():
        tensors[name] = tensor
    if "fill" in changes:
        tensors = {name: torch.full_like(tensor, changes["fill"]) for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS)


def plain_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in a folder, as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def beside(base: Path, folder: Path) -> PeftModel:
    """The model in `base` with an adapter beside its matrices: nothing is merged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(plain_model(base), str(folder), torch_device="cpu").eval()


def added_by_hand(model: PreTrainedModel, folder: Path, scales: dict[str, float]) -> dict[str, torch.Tensor]:
    """W + scale B A of every matrix of a model that a plain LoRA changes, by its name: summed in float32, rounded once.

    `scales` says the scale of a matrix by a part of its name. Matrices of Conv1D are [in, out].
    """
    tensors = load_file(folder / WEIGHTS)
    changed = {}
    for name in (key for key in tensors if key.endswith("lora_A.weight")):
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        (scale,) = (value for part, value in scales.items() if part in module)
        weight = model.get_parameter(f"{module}.weight").detach()
        product = tensors[name.replace("lora_A", "lora_B")].float() @ tensors[name].float()
        change = scale * (product.T if isinstance(model.get_submodule(module), Conv1D) else product)
        changed[f"{module}.weight"] = (weight.float() + change).to(weight.dtype)
    return changed
