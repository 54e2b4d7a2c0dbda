"""What packed weights stand for: for each way of packing a function of plain torch, which runs on any device.

A matrix is unpacked some rows at a time, in float32, so that beside the matrix itself only a little is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.host import is_host, numbers_at_once

_AT_ONCE = 1 << 18
"""Numbers that a processor unpacks at once, which stay in its cache."""
_AT_ONCE_ON_DEVICE = 1 << 22
"""Numbers that a device unpacks at once: it has a thousand kernels less to start."""
_BYTES = 24
"""Of a number on its way."""
_INT8_UNIT = 7.874015718698502e-3
"""1 / 127 as bitsandbytes has it."""
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place of each of eight columns in the word that AWQ packs them into."""
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_EXPONENT_BIAS = 127

Parts = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Form:
    """What a matrix is unpacked to, and what the checkpoint says of how it is packed."""

    shape: tuple[int, int]
    """Outputs and inputs."""
    dtype: torch.dtype
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Packing:
    """One way of packing matrices. `parts` are the checkpoint's names of the tensors that a module has instead."""

    bits: int | None
    """Of a number; None where the checkpoint says how many."""
    numbers: str
    """The parameter that has the numbers."""
    parts: tuple[str, ...]
    unpack: Callable[[Parts, Form, Tensor], Tensor]
    """The matrix, from the parts by their parameters' names: written into an empty one, [outputs, inputs]."""
    optional: tuple[str, ...] = ()

    @property
    def marker(self) -> str:
        """The part by which a module that is packed is told from others."""
        return self.parts[-1]

    def fits(self, parts: Parts, form: Form) -> bool:
        """Whether parts without data (on the device "meta") have the shapes that they need."""
        numbers, bits = parts[self.numbers], self.bits or form.settings["bits"]
        if numbers.numel() * numbers.itemsize != -(-form.shape[0] * form.shape[1] * bits // 8):
            return False
        try:
            self.unpack(parts, form, torch.empty(form.shape, dtype=form.dtype, device=numbers.device))
        except (RuntimeError, LookupError, ZeroDivisionError):
            return False
        return True


def _int8(parts: Parts, _form: Form, found: Tensor) -> Tensor:
    """bitsandbytes, 8 bits: a scale for every row."""
    weight, scales = parts["weight"], parts["SCB"]

    def unpacked(rows: slice) -> Tensor:
        return weight[rows] * scales[rows].view(rows.stop - rows.start, 1) * _INT8_UNIT

    return _by_rows(found, unpacked)


def _four_bits(parts: Parts, form: Form, found: Tensor) -> Tensor:
    """bitsandbytes, 4 bits: a table of sixteen numbers, and a scale for every block of numbers in a row of all."""
    size, rounded = form.settings["blocksize"], getattr(torch, form.settings["dtype"])
    packed = parts["weight"].flatten().view(torch.uint8)
    code = parts["weight_quant_map"].float()
    pairs = torch.stack((code.repeat_interleave(16), code.repeat(16)), -1)
    flat, step = found.view(-1), max(1, _at_once(packed.device) // size) * size
    for start in range(0, len(flat), step):
        end = min(start + step, len(flat))
        numbers = _looked_up(pairs, packed[start // 2 : -(-end // 2)])[: end - start]
        whole = (end - start) // size * size
        blocks = _scales(parts, form.settings, slice(start // size, -(-end // size)))[:, None]
        numbers[:whole].view(-1, size).mul_(blocks[: whole // size])
        if whole < len(numbers):
            numbers[whole:].mul_(blocks[-1])
        flat[start:end] = numbers.to(rounded)
    return found


def _scales(parts: Parts, settings: Mapping[str, Any], some: slice) -> Tensor:
    """Of some blocks, which may be packed themselves: in 8 bits by a table, with an offset."""
    scales = parts["weight_absmax"][some]
    if "weight_nested_absmax" not in parts:
        return scales.float()
    numbers = parts["weight_nested_quant_map"].float()[scales.int()]
    blocks = torch.arange(some.start, some.stop, device=numbers.device) // settings["nested_blocksize"]
    offset: float = settings["nested_offset"]
    return numbers * parts["weight_nested_absmax"].float()[blocks] + offset


def _fp8(parts: Parts, form: Form, found: Tensor) -> Tensor:
    """8-bit floating point, a scale for every block of rows and columns or for all of it."""
    weight, scales = parts["weight"], _exponents(parts["weight_scale_inv"])
    scales = scales.reshape(1, 1) if scales.numel() == 1 else scales
    blocks = form.settings.get("weight_block_size") if scales.numel() > 1 else None
    high, wide = blocks or (form.shape[0] // scales.shape[0], form.shape[1] // scales.shape[1])
    if scales.shape != (-(-form.shape[0] // high), -(-form.shape[1] // wide)):
        raise LookupError("not a scale for every block")
    columns = torch.arange(form.shape[1], device=weight.device) // wide

    def unpacked(rows: slice) -> Tensor:
        numbers = torch.arange(rows.start, rows.stop, device=weight.device) // high
        return weight[rows].float() * scales[numbers][:, columns]

    return _by_rows(found, unpacked)


def _gptq(parts: Parts, form: Form, found: Tensor) -> Tensor:
    """GPTQ: numbers of a few bits, several in a word along the inputs; a scale and a zero for each group of inputs."""
    words, bits = parts["weight"], form.settings["bits"]
    mask, each = (1 << bits) - 1, 32 // bits
    shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    zeros = (parts["qzeros"][..., None] >> shifts).bitwise_and_(mask).flatten(1)
    if form.settings.get("checkpoint_format", "gptq") == "gptq":
        zeros.add_(1).bitwise_and_(mask)  # it stores one less
    if zeros.shape != parts["scales"].shape:
        raise LookupError("not a scale for every zero")
    groups = parts["g_idx"].int() if "g_idx" in parts else _groups(form, parts["scales"])

    def unpacked(inputs: slice) -> Tensor:
        numbers = ((words[inputs.start // each : -(-inputs.stop // each), None] >> shifts[:, None]) & mask).flatten(
            0, 1
        )
        return _scaled(numbers, zeros, parts["scales"], groups[inputs])

    return _by_inputs(found, each, unpacked)


def _awq(parts: Parts, form: Form, found: Tensor) -> Tensor:
    """AWQ: numbers of four bits, eight in a word along the outputs; a scale and a zero for each group of inputs."""
    words = parts["weight"]
    shifts = 4 * torch.tensor(_AWQ_PLACES, device=words.device, dtype=torch.int32)
    zeros = (parts["qzeros"][..., None] >> shifts).bitwise_and_(15).flatten(1)
    groups = _groups(form, parts["scales"])

    def unpacked(inputs: slice) -> Tensor:
        numbers = ((words[inputs, :, None] >> shifts) & 15).flatten(1)
        return _scaled(numbers, zeros, parts["scales"], groups[inputs])

    return _by_inputs(found, 1, unpacked)


def _mxfp4(parts: Parts, _form: Form, found: Tensor) -> Tensor:
    """Microscaling: 4-bit floating point, two in a byte, and an exponent for every 32 inputs."""
    blocks, exponents = parts["blocks"].flatten(1), parts["scales"]
    code = torch.tensor((*_FP4, *(-number for number in _FP4)), device=blocks.device)
    pairs = torch.stack((code.repeat(16), code.repeat_interleave(16)), -1)

    def unpacked(rows: slice) -> Tensor:
        numbers = _looked_up(pairs, blocks[rows].flatten()).view(-1, exponents.shape[1], 32)
        return (numbers * _exponents(exponents[rows])[..., None]).flatten(1)

    return _by_rows(found, unpacked)


PACKINGS: dict[str, Packing] = {
    "bitsandbytes, 8 bit": Packing(8, "weight", ("weight", "SCB"), _int8),
    "bitsandbytes, 4 bit": Packing(
        4,
        "weight",
        ("weight", "weight.quant_map", "weight.absmax"),
        _four_bits,
        ("weight.nested_absmax", "weight.nested_quant_map"),
    ),
    "FP8": Packing(8, "weight", ("weight", "weight_scale_inv"), _fp8),
    "GPTQ": Packing(None, "weight", ("scales", "qzeros", "qweight"), _gptq, ("g_idx",)),
    "AWQ": Packing(4, "weight", ("scales", "qzeros", "qweight"), _awq),
    "MXFP4": Packing(4, "blocks", ("scales", "blocks"), _mxfp4),
}
"""By the names that people are told."""


def matrix_bytes(form: Form, device: torch.device) -> int:
    """What a matrix takes while it is unpacked, and then read: of half precision, scoring makes float32 in pieces.

    With the zeros of all groups, which are unpacked before it, and the numbers on their way.
    """
    outputs, inputs = form.shape
    copied = 0 if form.dtype == torch.float32 else min(outputs * inputs, numbers_at_once(device))
    zeros = outputs * _group_count(form) * torch.int32.itemsize if "group_size" in form.settings else 0
    matrix = outputs * inputs * form.dtype.itemsize + copied * torch.float32.itemsize
    return matrix + zeros + _BYTES * _at_once(device)


def parameter_name(part: str) -> str:
    """The parameter that a part of a projection becomes: the numbers are the weight, and names have no dots."""
    return "weight" if part == "qweight" else part.replace(".", "_")


def _at_once(device: torch.device) -> int:
    return _AT_ONCE if is_host(device) else _AT_ONCE_ON_DEVICE


def _by_rows(found: Tensor, unpacked: Callable[[slice], Tensor]) -> Tensor:
    outputs, inputs = found.shape
    step = max(1, _at_once(found.device) // inputs)
    for start in range(0, outputs, step):
        rows = slice(start, min(start + step, outputs))
        found[rows] = unpacked(rows)
    return found


def _by_inputs(found: Tensor, multiple: int, unpacked: Callable[[slice], Tensor]) -> Tensor:
    """As they lie where a layer's inputs come first; so many inputs are read at once that words are read whole."""
    outputs, inputs = found.shape
    step = max(1, _at_once(found.device) // outputs // multiple) * multiple
    for start in range(0, inputs, step):
        some = slice(start, min(start + step, inputs))
        found[:, some] = unpacked(some).T
    return found


def _scaled(numbers: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    """[inputs, outputs], by the group of each input."""
    return (numbers - zeros[groups]) * scales[groups].float()


def _groups(form: Form, scales: Tensor) -> Tensor:
    """The group of each input, where groups follow one another. Raises LookupError where one has no scales."""
    if len(scales) != _group_count(form):
        raise LookupError("not a scale for every group")
    return torch.arange(form.shape[1], device=scales.device, dtype=torch.int32) // _group_size(form)


def _group_size(form: Form) -> int:
    """Inputs of a group: all of them, where a checkpoint says -1."""
    size: int = form.settings.get("group_size", -1)
    return size if size > 0 else form.shape[1]


def _group_count(form: Form) -> int:
    return -(-form.shape[1] // _group_size(form))


def _looked_up(pairs: Tensor, packed: Tensor) -> Tensor:
    """The two numbers of every byte, one after another."""
    return pairs[packed.int()].flatten()


def _exponents(scales: Tensor) -> Tensor:
    """Scales in float32; a byte is the exponent of two."""
    return (scales.float() - _EXPONENT_BIAS).exp2() if scales.dtype is torch.uint8 else scales.float()
