"""Interventions on the command line: `--zero 24.1005 10.h3 --scale 7.ffn=0.5 --set 10.3.20=-2`."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator

from neuron_attribution.cli.options import add_flag, add_option
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron, parse_neuron
from neuron_attribution.requests import Intervention, LayerPart, LayerPartKind, Operation, Scale, SetTo, Zero

NAMES = (
    "LAYER.INDEX (FFN neuron), LAYER.eEXPERT.INDEX (an expert's), LAYER.HEAD.INDEX (attention neuron), LAYER.hHEAD "
    "(whole head), LAYER.attention or LAYER.ffn (all its neurons)"
)

Named = Neuron | Head | LayerPart
Changed = tuple[Operation, tuple[Named, ...]]


def add_intervention_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name what is changed, and how."""
    group = parser.add_argument_group("interventions", f"A NAME is {NAMES}.")
    for flag, kind, metavar, what in (
        ("--zero", _zeroed, "NAME,...", "set the coefficients of these to zero"),
        ("--scale", _changed(Scale), "NAME,...=FACTOR", "multiply the coefficients of these by FACTOR"),
        ("--set", _changed(SetTo), "NAME,...=VALUE", "set the coefficients of these to VALUE"),
    ):
        add_option(group, flag, kind=kind, default=(), shown="none", many=True, metavar=metavar, help=what)
    add_flag(group, "--explained-position-only", help="change them at the explained position only, not at every one")


def interventions_of(arguments: argparse.Namespace) -> tuple[Intervention, ...]:
    """What the options ask for: first everything that is zeroed, then scaled, then set."""
    return tuple(
        _intervention(operation, names, arguments.explained_position_only) for operation, names in _given(arguments)
    )


def separate_interventions_of(arguments: argparse.Namespace) -> tuple[Intervention, ...]:
    """The same with one name in each."""
    return tuple(
        _intervention(operation, (name,), arguments.explained_position_only)
        for operation, names in _given(arguments)
        for name in names
    )


def intervention_text(intervention: Intervention) -> str:
    """An intervention for people, as it is written."""
    match intervention.operation:
        case Zero():
            done, number = "zero ", ""
        case Scale(factor):
            done, number = "scale ", f"={factor:g}"
        case SetTo(value):
            done, number = "set ", f"={value:g}"
    heads = [f"{head.layer}.h{head.head}" for head in intervention.heads]
    return done + ",".join([*map(str, intervention.neurons), *heads, *map(str, intervention.layers)]) + number


def parse_named(text: str) -> Named:
    """Read a neuron, a head or a part of a layer. Raises ValueError for anything else."""
    head = re.fullmatch(r"([0-9]+)\.h([0-9]+)", text)
    if head:
        return Head(*map(int, head.groups()))
    part = re.fullmatch(r"([0-9]+)\.(attention|ffn)", text)
    if part:
        return LayerPart(int(part[1]), LayerPartKind(part[2]))
    try:
        return parse_neuron(text)
    except ValueError:
        raise ValueError(f"{text!r} names nothing that can be changed: write {NAMES}") from None


def _given(arguments: argparse.Namespace) -> Iterator[Changed]:
    """What is changed, the names of one operation together."""
    together: dict[Operation, tuple[Named, ...]] = {}
    for operation, names in (*arguments.zero, *arguments.scale, *arguments.set):
        together[operation] = together.get(operation, ()) + names
    yield from together.items()


def _intervention(operation: Operation, names: tuple[Named, ...], only: bool) -> Intervention:
    return Intervention(
        operation=operation,
        neurons=tuple(name for name in names if isinstance(name, FfnNeuron | AttentionNeuron)),
        heads=tuple(name for name in names if isinstance(name, Head)),
        layers=tuple(name for name in names if isinstance(name, LayerPart)),
        explained_position_only=only,
    )


def _zeroed(text: str) -> Changed:
    return Zero(), _names(text)


def _changed(kind: type[Scale] | type[SetTo]) -> Callable[[str], Changed]:
    def read(text: str) -> Changed:
        names, separator, number = text.partition("=")
        if not separator:
            raise ValueError(f"{text!r} is not NAME=NUMBER")
        return kind(_number(number)), _names(names)

    return read


def _names(text: str) -> tuple[Named, ...]:
    return tuple(parse_named(part.strip()) for part in text.split(","))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value
