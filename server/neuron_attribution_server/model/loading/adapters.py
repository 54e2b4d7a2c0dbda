"""A LoRA adapter merged into its base by peft: every tensor of it finds its place, or the adapter is refused."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch
from neuron_attribution.errors import NeuronAttributionError
from torch import nn
from transformers import PreTrainedModel

from neuron_attribution_server.model.loading.load_failures import words_of
from neuron_attribution_server.model.loading.sources.adapter_source import AdapterSource, refused_adapter
from neuron_attribution_server.model.loading.sources.model_source import ModelSource

if TYPE_CHECKING:
    from peft import PeftModel

_NAME = "default"
_OTHER_SHAPE = re.compile(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", re.DOTALL)

_log = logging.getLogger(__name__)


def merged(model: PreTrainedModel, source: ModelSource, adapter: AdapterSource) -> PreTrainedModel:
    """The model with the adapter in its own matrices, each rounded once, of the types that they had.

    Raises FailedPreconditionError for an adapter that does not fit the model, and for one whose numbers are not finite.
    """
    _tell_base(source, adapter)
    types = {name: parameter.dtype for name, parameter in model.named_parameters(remove_duplicate=False)}
    with warnings.catch_warnings(), _naming_adapter(source, adapter), torch.no_grad():
        warnings.simplefilter("ignore")  # peft warns of what is looked at here, or made good
        adapted = _adapted(model, source, adapter)
        _part_shared(adapted)
        plain: PreTrainedModel = adapted.merge_and_unload()
        for name, parameter in plain.named_parameters():
            parameter.data = parameter.data.to(types.get(name, parameter.dtype))
    return plain


def _adapted(model: PreTrainedModel, source: ModelSource, adapter: AdapterSource) -> PeftModel:
    """The model with the adapter beside its matrices, in float32, whatever type these have."""
    from peft import LoraConfig, PeftModel

    config = LoraConfig.from_pretrained(str(adapter.folder))
    config.inference_mode = True
    config.init_lora_weights = True  # how training began is past
    adapted = PeftModel(model, config, _NAME)
    found = adapted.load_adapter(str(adapter.folder), _NAME, torch_device="cpu")
    if found.missing_keys:
        raise refused_adapter(f"{adapter.weights} {_count('lacks', found.missing_keys)} that {adapter.config} asks for")
    if found.unexpected_keys:
        raise refused_adapter(
            f"{adapter.weights} {_count('has', found.unexpected_keys)} that {type(model).__name__} has no place for: "
            f"the adapter was made for another base than {source.name}"
        )
    for name, parameter in adapted.named_parameters():
        if f".{_NAME}" in name and not parameter.isfinite().all():
            raise refused_adapter(f"{adapter.weights} has numbers that are not finite in {_written(name)}")
    return adapted


def _part_shared(adapted: PeftModel) -> None:
    """Give a tuned matrix that another module shares, such as the unembedding, a copy of its own.

    The adapter was beside one of the two; merged in place it would change both. An embedding is tuned in float32:
    peft would round what is added before it is.
    """
    from peft.tuners.lora import Embedding, LoraLayer

    holders = Counter(id(each) for module in adapted.modules() for each in module._parameters.values())
    for layer in adapted.modules():
        if not isinstance(layer, LoraLayer):
            continue
        base = layer.get_base_layer()
        weight = base._parameters.get("weight")
        if weight is not None and holders[id(weight)] > 1:
            base.weight = nn.Parameter(weight.clone(), requires_grad=False)
        if isinstance(layer, Embedding) and torch.finfo(base.weight.dtype).bits < torch.finfo(torch.float32).bits:
            base.float()


@contextmanager
def _naming_adapter(source: ModelSource, adapter: AdapterSource) -> Iterator[None]:
    """Raise FailedPreconditionError with the adapter's file for what peft raises."""
    try:
        yield
    except (NeuronAttributionError, ImportError):
        raise
    except KeyError as error:  # of a module that was trained whole
        lacks = f"lacks the tensor {error.args[0]} that {adapter.config} asks for"
        raise refused_adapter(f"{adapter.weights} {lacks}") from error
    except Exception as error:
        problem = words_of(error)
        if other := _OTHER_SHAPE.search(str(error)):
            name, stored, expected = other.groups()
            problem = f"{_written(name)} is {_shape(stored)}, and this base asks for {_shape(expected)}"
        raise refused_adapter(f"{adapter.weights} cannot be merged into {source.name}: {problem}") from error


def _tell_base(source: ModelSource, adapter: AdapterSource) -> None:
    """Nothing is loaded from what an adapter names."""
    if adapter.base and PurePath(adapter.base).name not in (PurePath(source.name).name, PurePath(source.path).name):
        _log.info("%s says that it was made for %s; it is merged into %s", adapter.config, adapter.base, source.name)


def _count(verb: str, keys: list[str]) -> str:
    tensors = "tensor" if len(keys) == 1 else "tensors"
    return f"{verb} {len(keys)} {tensors}, such as {_written(min(keys))},"


def _written(key: str) -> str:
    """A tensor's name as the adapter's file has it."""
    return key.replace(f".{_NAME}", "")


def _shape(sizes: str) -> str:
    return sizes.replace(", ", "x")
