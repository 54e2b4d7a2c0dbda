"""Interventions on the command line: `--zero 24.1005 10.h3 --scale 7.ffn=0.5 --set 10.3.20=-2`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator

from neuron_attribution.cli.options import add_flag, add_option
from neuron_attribution.neurons import FfnNeuron, Head
from neuron_attribution.requests import Intervention, Operation, Scale, SetTo, Zero
from neuron_attribution.transport.changes import NAMES, Named, changed, parse_named

MOST_HEADS = 128
"""Of a layer of any model there is: an FFN neuron of a lower number may be meant for a head."""
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
        changed(operation, names, explained_position_only=arguments.explained_position_only)
        for operation, names in _given(arguments)
    )


def separate_interventions_of(arguments: argparse.Namespace) -> tuple[Intervention, ...]:
    """The same with one name in each."""
    return tuple(
        changed(operation, [name], explained_position_only=arguments.explained_position_only)
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
    return done + ",".join(map(str, (*intervention.neurons, *intervention.heads, *intervention.layers))) + number


def confusable_texts(sets: Iterable[Iterable[Intervention]]) -> list[str]:
    """What FFN neurons are that look like heads, and how those are written."""
    neurons = {neuron for each in sets for intervention in each for neuron in intervention.neurons}
    return [
        f"{neuron} is FFN neuron {neuron.index} of layer {neuron.layer}; head {neuron.index} is written "
        f"{Head(neuron.layer, neuron.index)}"
        for neuron in sorted(each for each in neurons if isinstance(each, FfnNeuron))
        if neuron.expert is None and neuron.index < MOST_HEADS
    ]


def _given(arguments: argparse.Namespace) -> Iterator[Changed]:
    """What is changed, the names of one operation together."""
    together: dict[Operation, tuple[Named, ...]] = {}
    for operation, names in (*arguments.zero, *arguments.scale, *arguments.set):
        together[operation] = together.get(operation, ()) + names
    yield from together.items()


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
