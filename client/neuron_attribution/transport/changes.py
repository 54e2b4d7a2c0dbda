"""Interventions from the names of what is changed: `24.1005`, `10.3.20`, `23.h4`, `7.ffn`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron, parse_head, parse_neuron
from neuron_attribution.requests import (
    Intervention,
    InterventionSet,
    LayerPart,
    LayerPartKind,
    Operation,
    Scale,
    SetTo,
    Zero,
)

NAMES = (
    "LAYER.INDEX (FFN neuron), LAYER.eEXPERT.INDEX (an expert's), LAYER.HEAD.INDEX (attention neuron), LAYER.hHEAD "
    "(whole head), LAYER.attention or LAYER.ffn (all its neurons)"
)

Named = Neuron | Head | LayerPart
NamedLike = Named | str


def parse_named(text: str) -> Named:
    """Read a neuron, a head or a part of a layer. Raises ValueError for anything else."""
    if re.fullmatch(r"[0-9]+\.h[0-9]+", text):
        return parse_head(text)
    if part := re.fullmatch(r"([0-9]+)\.(attention|ffn)", text):
        return LayerPart(int(part[1]), LayerPartKind(part[2]))
    try:
        return parse_neuron(text)
    except ValueError:
        raise ValueError(f"{text!r} names nothing that can be changed: write {NAMES}") from None


def changed(operation: Operation, names: Iterable[Named], *, explained_position_only: bool = False) -> Intervention:
    """One operation on all that is named."""
    listed = tuple(names)
    return Intervention(
        operation=operation,
        neurons=tuple(name for name in listed if isinstance(name, FfnNeuron | AttentionNeuron)),
        heads=tuple(name for name in listed if isinstance(name, Head)),
        layers=tuple(name for name in listed if isinstance(name, LayerPart)),
        explained_position_only=explained_position_only,
    )


def one_set(
    zero: NamedLike | Iterable[NamedLike],
    scale: Mapping[NamedLike, float],
    set_to: Mapping[NamedLike, float],
    *,
    explained_position_only: bool,
) -> InterventionSet:
    """First everything that is zeroed, then scaled, then set. Raises ValueError for what names nothing."""
    together: dict[Operation, list[Named]] = {}
    for name in [zero] if isinstance(zero, str | Named) else zero:
        together.setdefault(Zero(), []).append(_read(name))
    for kind, numbers in ((Scale, scale), (SetTo, set_to)):
        for name, number in numbers.items():
            together.setdefault(kind(number), []).append(_read(name))
    return tuple(
        changed(operation, names, explained_position_only=explained_position_only)
        for operation, names in together.items()
    )


def _read(name: NamedLike) -> Named:
    if isinstance(name, str):
        return parse_named(name)
    if isinstance(name, Named):
        return name
    raise ValueError(f"{name!r} names nothing that can be changed: write {NAMES}")
