"""Quantized checkpoints whose matrices stay packed in memory, loaded by transformers into modules of ours.

transformers asks its quantizers which modules a checkpoint's tensors belong to. Ours answers from the tensors that the
files have, so that neither the libraries that made a checkpoint nor their kernels are needed to serve it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from neuron_attribution.errors import FailedPreconditionError
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.modeling_utils import str_to_torch_dtype
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from neuron_attribution_server.model.architectures.packed.modules import (
    Memo,
    PackedExperts,
    PackedLinear,
    tensor_bytes,
    unembedding_bytes,
    unpack,
    unpacked_bytes,
)
from neuron_attribution_server.model.architectures.packed.packings import PACKINGS, Form, Packing, parameter_name

METHOD = "neuron_attribution"
_STATE = "weight.quant_state.bitsandbytes__"
"""What bitsandbytes says of a matrix, as JSON in bytes."""
_OF_EXPERT = re.compile(r"((.*\.experts)\.\d+\.\w+)\.weight_scale_inv$")
"""The scales of one expert's projection."""
_NUMBERS = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
"""The types of numbers that mean nothing without scales, and would be taken for weights."""
_EXPERT_MATRICES = ("gate_up_proj", "down_proj")

_log = logging.getLogger(__name__)


class NotKeptPackedError(Exception):
    """A checkpoint that is packed otherwise than its configuration says, or than is known here."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of a checkpoint."""

    file: str
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """A checkpoint's own quantization configuration, under our method's name."""

    def __init__(self, original: Mapping[str, Any], kind: str, **_: object) -> None:
        self.quant_method: Any = METHOD
        self.original = original
        self.kind = kind


def keeping_packed(
    config: PreTrainedConfig | None, load: Callable[..., tuple[PreTrainedModel, dict[str, Any]]]
) -> tuple[PreTrainedModel, dict[str, Any], str | None]:
    """A model as `load` loads it, what that tells, and how its matrices are packed; None where they do not stay so.

    `load` may be given another configuration. Raises what it raises.
    """
    packing = None if config is None else _set_packed(config)
    if packing is None:
        return *load(), None
    try:
        return *load(config=config), packing
    except NotKeptPackedError as error:
        _tell_unpacked(packing, f"they are not packed as its configuration says: {error}")
        return *load(), None


def unpack_for(model: PreTrainedModel, packing: str, why: str) -> None:
    """Unpack what was packed, and log why."""
    _tell_unpacked(packing, why)
    unpack(model)


def _tell_unpacked(packing: str, why: str) -> None:
    _log.info("weights are unpacked at load", extra={"fields": {"packing": packing, "reason": why}})


def _set_packed(config: PreTrainedConfig) -> str | None:
    """Have a model's matrices stay packed; the name of how they are packed, or None where they cannot stay so."""
    original: Any = getattr(config, "quantization_config", None)
    if original is None:
        return None
    original = original if isinstance(original, dict) else original.to_dict()
    kind = _kind(original)
    if kind is not None:
        config.quantization_config = {"quant_method": METHOD, "original": original, "kind": kind}
    return kind


def tell_packed(model: PreTrainedModel, kind: str, device: torch.device) -> None:
    """Log what the weights take: those in memory all the time, and the matrix that is unpacked at a time."""
    weights = tensor_bytes(model) + unembedding_bytes(model)
    fields = {"packing": kind, "weights_bytes": weights, "unpacked_bytes": unpacked_bytes(model, device)}
    _log.info("weights stay packed", extra={"fields": fields})


def _kind(settings: Mapping[str, Any]) -> str | None:
    match str(settings.get("quant_method", "bitsandbytes")):
        case "bitsandbytes":
            return "bitsandbytes, 8 bit" if settings.get("load_in_8bit") else "bitsandbytes, 4 bit"
        case "fp8":
            return "FP8"
        case "gptq" if settings.get("bits") in (2, 4, 8):
            return "GPTQ"
        case "awq" if settings.get("bits") == 4 and str(settings.get("version", "gemm")).lower() == "gemm":
            return "AWQ"
        case "mxfp4":
            return "MXFP4"
    return None


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts modules with packed weights where a checkpoint has such."""

    quantization_config: PackedConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:  # noqa: ANN401
        kind, settings = self.quantization_config.kind, self.quantization_config.original
        stored = _stored(kwargs["checkpoint_files"] or ())
        _check_scales(stored, PACKINGS[kind])
        checkpoint = _Checkpoint(PACKINGS[kind], stored, settings, dict(model.named_modules()), model.base_model_prefix)
        if kind == "MXFP4":
            put = _put_experts(checkpoint)
        else:
            put = _put_merged_experts(checkpoint) + _put_projections(model, checkpoint)
        if not put:
            raise NotKeptPackedError(kind)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """A checkpoint's names of parts become their parameters'; parts of experts are merged as plain matrices are."""
        packing = PACKINGS[self.quantization_config.kind]
        renamed = {part: parameter_name(part) for part in (*packing.parts, *packing.optional)}
        ours: list[Any] = [
            WeightRenaming(rf"\.{re.escape(part)}", f".{name}") for part, name in renamed.items() if part != name
        ]
        names = [name for name, _ in model.named_parameters()]
        for conversion in weight_conversions:
            targets = conversion._original_target_patterns
            merged = [part for part in packing.parts if any(name.endswith(f"{targets[0]}_{part}") for name in names)]
            if isinstance(conversion, WeightConverter) and merged:
                ours += [_of_part(conversion, part) for part in merged]
            else:
                ours.append(conversion)
        return ours

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]

    def is_serializable(self) -> bool:
        """Such models are served only."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Such models are served only."""
        return False


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """What its files have, and the empty model that they are for."""

    packing: Packing
    stored: Mapping[str, _Stored]
    settings: Mapping[str, Any]
    modules: Mapping[str, Any]
    base: str
    memo: Memo = field(default_factory=Memo)

    def module(self, prefix: str) -> str:
        """The name of the module whose tensors' names begin so. Raises NotKeptPackedError."""
        names = (prefix, f"{self.base}.{prefix}", prefix.removeprefix(f"{self.base}."))
        name = next((each for each in names if each in self.modules), None)
        if name is None:
            raise NotKeptPackedError(f"no module {prefix}")
        return name

    def prefixes(self, marker: str) -> list[str]:
        """What the names of tensors begin with of which one is called so, but those of single experts."""
        ends = f".{marker}"
        return [key.removesuffix(ends) for key in self.stored if key.endswith(ends) and not _OF_EXPERT.match(key)]


def _put_projections(model: PreTrainedModel, checkpoint: _Checkpoint) -> int:
    """Replace the projections that are packed; how many. Raises NotKeptPackedError."""
    packing, prefixes = checkpoint.packing, checkpoint.prefixes(checkpoint.packing.marker)
    tied = model.get_output_embeddings() if model.config.get_text_config().tie_word_embeddings else None
    for prefix in prefixes:
        name = checkpoint.module(prefix)
        if checkpoint.modules[name] is tied:
            raise NotKeptPackedError(f"{name} is packed, and the embedding it shares its matrix with is not")
        module, parts = checkpoint.modules[name], _parts(prefix, packing, checkpoint.stored)
        form = Form(_shape(module), module.weight.dtype, {**checkpoint.settings, **_state(prefix, checkpoint.stored)})
        _check(packing, form, parts, name)
        packed = PackedLinear(packing, form, _parameters(parts), module.bias, checkpoint.memo)
        model.set_submodule(name, packed)
    return len(prefixes)


def _put_experts(checkpoint: _Checkpoint) -> int:
    """Replace the 3-D parameters of experts that are packed as such; how many. Raises NotKeptPackedError."""
    count = 0
    for matrix in _EXPERT_MATRICES:
        for prefix in checkpoint.prefixes(f"{matrix}_{checkpoint.packing.marker}"):
            parts = {part: checkpoint.stored[f"{prefix}.{matrix}_{part}"] for part in checkpoint.packing.parts}
            _put_matrices(checkpoint, checkpoint.module(prefix), matrix, parts)
            count += 1
    return count


def _put_merged_experts(checkpoint: _Checkpoint) -> int:
    """Replace the 3-D parameters of experts that are packed one by one; how many. Raises NotKeptPackedError.

    Where a matrix is that of two projections, blocks with one scale must not be in both.
    """
    found = {match[2]: match[1] for match in map(_OF_EXPERT.match, checkpoint.stored) if match is not None}
    for prefix, some in found.items():
        name = checkpoint.module(prefix)
        for matrix in _EXPERT_MATRICES:
            held = getattr(checkpoint.modules[name], matrix, None)
            block = checkpoint.settings.get("weight_block_size")
            if not isinstance(held, nn.Parameter) or block is None:
                raise NotKeptPackedError(f"{name}.{matrix}")
            if matrix == "gate_up_proj" and held.shape[1] // 2 % block[0]:
                raise NotKeptPackedError(f"{name}.{matrix}: blocks of {block}")
            experts, *sides = held.shape
            scales = (experts, *(-(-side // size) for side, size in zip(sides, block, strict=True)))
            parts = {
                part: replace(checkpoint.stored[f"{some}.{part}"], shape=shape)
                for part, shape in (("weight", tuple(held.shape)), ("weight_scale_inv", scales))
            }
            _put_matrices(checkpoint, name, matrix, parts)
    return len(_EXPERT_MATRICES) * len(found)


def _put_matrices(checkpoint: _Checkpoint, name: str, matrix: str, parts: Mapping[str, _Stored]) -> None:
    """Put parts in the place of a 3-D parameter. Raises NotKeptPackedError."""
    packing, module = checkpoint.packing, checkpoint.modules[name]
    held, transposed = getattr(module, matrix), getattr(module, "is_transposed", None)
    if transposed is None:
        raise NotKeptPackedError(f"{name} is no module of experts that is known to read them one by one")
    form = Form(tuple(held.shape[:0:-1] if transposed else held.shape[1:]), held.dtype, checkpoint.settings)
    if any(each.shape[0] != held.shape[0] for each in parts.values()):
        raise NotKeptPackedError(f"{name}.{matrix}: not every expert has all parts")
    one = {part: replace(each, shape=each.shape[1:]) for part, each in parts.items()}
    _check(packing, form, one, f"{name}.{matrix}")
    delattr(module, matrix)
    for part, parameter in _parameters(parts).items():
        module.register_parameter(f"{matrix}_{part}", parameter)
    setattr(module, matrix, PackedExperts(packing, form, module, matrix, checkpoint.memo, transposed=transposed))
    module._is_hf_initialized = True  # or transformers makes up matrices


def _of_part(conversion: WeightConverter, part: str) -> WeightConverter:
    """What merges experts' matrices, of a part of theirs."""
    sources = [source.removesuffix("weight") + part for source in conversion._original_source_patterns]
    targets = [f"{target}_{part}" for target in conversion._original_target_patterns]
    return conversion.copy(sources, targets, operations=list(conversion.operations))


def _stored(files: Iterable[str]) -> dict[str, _Stored]:
    """Every tensor of safetensors files by its name, unread."""
    found = {}
    for file in files:
        if not file.endswith(".safetensors"):
            raise NotKeptPackedError(file)
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                part = tensors.get_slice(name)
                dtype = str_to_torch_dtype.get(part.get_dtype())
                if dtype is None:
                    raise NotKeptPackedError(f"{name} is {part.get_dtype()}")
                found[name] = _Stored(file, name, dtype, tuple(part.get_shape()))
    return found


def _check_scales(stored: Mapping[str, _Stored], packing: Packing) -> None:
    """Refuse a checkpoint that has scales, but not of all of its numbers: these would be read as they are.

    Raises FailedPreconditionError.
    """
    ends = f".{packing.numbers}"
    if packing.marker == packing.numbers or not any(name.endswith(f".{packing.marker}") for name in stored):
        return
    for name, part in stored.items():
        scales = f"{name.removesuffix(ends)}.{packing.marker}"
        if name.endswith(ends) and part.dtype in _NUMBERS and scales not in stored:
            raise FailedPreconditionError(
                f"model refused: {part.file} has the packed numbers {name} and no {scales}: the model is incomplete; "
                "copy or download it again",
                reason="CANNOT_LOAD",
            )


def _parts(prefix: str, packing: Packing, stored: Mapping[str, _Stored]) -> dict[str, _Stored]:
    """The tensors of a module by their parameters' names."""
    names = (*packing.parts, *packing.optional)
    found = {name: stored[f"{prefix}.{name}"] for name in names if f"{prefix}.{name}" in stored}
    missing = [name for name in packing.parts if name not in found]
    if missing:
        raise NotKeptPackedError(f"{prefix} lacks {missing}")
    return {parameter_name(name): part for name, part in found.items()}


def _state(prefix: str, stored: Mapping[str, _Stored]) -> dict[str, Any]:
    """What the checkpoint says of one module's matrix alone."""
    for kind in ("nf4", "fp4"):
        part = stored.get(f"{prefix}.{_STATE}{kind}")
        if part is not None:
            with safe_open(part.file, framework="pt") as tensors:
                found: dict[str, Any] = json.loads(bytes(tensors.get_tensor(part.name).tolist()))
            return found
    return {}


def _parameters(parts: Mapping[str, _Stored]) -> dict[str, nn.Parameter]:
    """Empty ones, as the files have them: transformers fills them."""
    found: dict[str, Any] = {}
    for name, part in parts.items():
        found[name] = nn.Parameter(torch.empty(part.shape, dtype=part.dtype, device="meta"), requires_grad=False)
        found[name]._is_hf_initialized = True  # or transformers makes up those that it leaves on disk
    return found


def _check(packing: Packing, form: Form, parts: Mapping[str, _Stored], name: str) -> None:
    """Raises NotKeptPackedError where the parts of a module are no such matrix as it has."""
    empty = {part: torch.empty(each.shape, dtype=each.dtype, device="meta") for part, each in parts.items()}
    if not packing.fits(empty, form):
        raise NotKeptPackedError(name)


def _shape(module: nn.Module) -> tuple[int, int]:
    """A projection's outputs and inputs. Raises NotKeptPackedError for other modules."""
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return outputs, inputs
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    raise NotKeptPackedError(type(module).__name__)
