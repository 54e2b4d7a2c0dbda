"""Where a layer's modules and numbers are, by the paths that its architecture's spec names."""

from __future__ import annotations

from typing import Any

from torch import nn

from neuron_attribution_server.model.architectures.projections import (
    HeadSizes,
    holds_values,
    key_value_heads,
    shape_of,
)
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, Rows


def attends(layer: nn.Module, spec: ArchitectureSpec) -> bool:
    """Whether a layer has attention: its output projection, and what computes the values."""
    return all(submodule(layer, path) is not None for path in (spec.attention_output, spec.value.module))


def submodule(module: Any, path: str | None) -> nn.Module | None:  # noqa: ANN401 - read by attributes
    """The module at a path, or None where there is none."""
    for name in path.split(".") if path else []:
        module = getattr(module, name, None)
        if module is None:
            return None
    return module if path else None


def value_rows(layer: nn.Module, spec: ArchitectureSpec) -> Rows | None:
    """Where a layer's value projection is, or None where values may be shared and it has none."""
    has_own = submodule(layer, spec.value.module) is not None
    rows = spec.value if has_own or spec.value_else is None else spec.value_else
    return None if spec.value_sharing and submodule(layer, rows.module) is None else rows


def head_sizes(layer: nn.Module, made: nn.Module, spec: ArchitectureSpec, config: Any) -> HeadSizes | None:  # noqa: ANN401
    """Those of a layer that mixes the values which `made` makes.

    None where it has no attention, as layers may where others are recurrent. Raises AttributeError where the value
    projection's rows cannot be laid out as the spec says.
    """
    if spec.recurrence is not None and not attends(layer, spec):
        return None
    value = value_rows(made, spec)
    assert value is not None
    heads = config.num_attention_heads
    head_size = shape_of(layer.get_submodule(spec.attention_output))[1] // heads
    rows = shape_of(made.get_submodule(value.module))[0]
    sizes = HeadSizes(heads, key_value_heads(rows, value.layout, heads, head_size) if head_size else 0, head_size)
    if not holds_values(rows, value.layout, sizes):
        raise AttributeError(f"the {rows} rows of {value.module} are not values of heads of {head_size}")
    return sizes


def attribute(holder: object, path: str | None) -> Any:  # noqa: ANN401 - a number or nothing
    """What an object has at a path of attributes, or None."""
    for name in path.split(".") if path else []:
        holder = getattr(holder, name, None)
    return holder if path else None


def factor_of(path: str | None, *holders: object) -> float:
    """The number at a path of the first holder that has one there; 1 where none has."""
    found = (attribute(holder, path) for holder in holders)
    return float(next((number for number in found if number is not None), 1.0))
