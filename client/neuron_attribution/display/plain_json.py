"""Results that have no protobuf message, as JSON: every field and property by its name, neurons as they are written."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from enum import Enum

import numpy as np

from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def plain_json(value: object) -> str:
    """The JSON text, as protobuf's is laid out."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: object) -> Plain:
    """Dictionaries, lists and numbers. What is not finite (a bound where there is nothing to bound) is None."""
    if isinstance(value, FfnNeuron | AttentionNeuron | Head):
        return str(value)
    if isinstance(value, np.ndarray | tuple | list):
        return [plain(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if is_dataclass(value):
        return {name: plain(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    simple = value.value if isinstance(value, Enum) else value
    assert simple is None or isinstance(simple, bool | int | str)
    return simple


def _names(kind: type) -> list[str]:
    """Fields first, then properties, which say what follows from them."""
    properties = [name for name, item in vars(kind).items() if isinstance(item, property)]
    return [field.name for field in fields(kind)] + properties
