"""Where a model lies: on one device, or spread over several by transformers and accelerate."""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import torch
from neuron_attribution.errors import FailedPreconditionError
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from neuron_attribution_server.model.architectures.parameters import read_on
from neuron_attribution_server.settings.config import LoadSettings


def loading_arguments(settings: LoadSettings) -> dict[str, Any]:
    """What transformers is told of devices when it loads the model."""
    if settings.device_map is None:
        return {}
    return {
        "device_map": settings.device_map,
        "max_memory": _memory(settings.device_memory) if settings.device_memory else None,
        "offload_folder": _offload_folder().name,
    }


def place(model: PreTrainedModel, settings: LoadSettings) -> None:
    """Bring the loaded model where it runs."""
    if settings.device_map is None:
        nn.Module.to(model, device_of(settings))
    elif len(set(_device_map(model).values())) > 1 or not _runs(model):
        read_on(model, _first_device(model))


def check_whole(model: PreTrainedModel) -> None:
    """Refuse a model whose matrices are divided among processes, as tensor parallel plans divide them."""
    divided = next((name for name, value in model.named_parameters() if isinstance(value, DTensor)), None)
    if divided is not None or getattr(model, "tp_size", None) not in (None, 1):
        raise FailedPreconditionError(
            f"model refused: it is loaded by a tensor parallel plan ({divided or 'every process holds a part'}): "
            "a neuron's vectors and coefficients would lie in other processes; spread whole layers over the devices "
            "instead, with --device-map auto",
            reason="TENSOR_PARALLEL",
        )


def device_of(settings: LoadSettings) -> torch.device:
    """The one device a model is loaded to."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _device_map(model: PreTrainedModel) -> dict[str, Any]:
    found: dict[str, Any] = getattr(model, "hf_device_map", {})
    return found


def _runs(model: PreTrainedModel) -> bool:
    """Whether the one place where a model lies is a device that computes."""
    return "disk" not in _device_map(model).values()


def _first_device(model: PreTrainedModel) -> torch.device:
    """The first GPU that holds a part, where there is one."""
    places = [torch.device(each) for each in _device_map(model).values() if each != "disk"]
    return min((each for each in places if each.type != "cpu"), key=str, default=torch.device("cpu"))


def _memory(text: str) -> dict[str | int, str]:
    """What each device may hold of the weights, as accelerate reads it: GPUs go by number."""
    pairs = (each.split("=") for each in text.split(","))
    return {int(name.removeprefix("cuda:")) if name != "cpu" else name: size for name, size in pairs}


@cache
def _offload_folder() -> TemporaryDirectory[str]:
    """For what fits on no device and cannot be read from the checkpoint in place; gone when the process ends."""
    return TemporaryDirectory(prefix="neuron-attribution-offload-")
