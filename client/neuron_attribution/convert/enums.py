"""The enums in both forms. Members and values share their names, so a table is a prefix and a default."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Generic, TypeVar

from neuron_attribution.errors import InternalError, InvalidArgumentError
from neuron_attribution.generation import FinishReason
from neuron_attribution.requests import Aggregate, Direction, LayerPartKind, Part, ScoringMethod, Side, Subkey
from neuron_attribution.results import ComponentKind, Mixer, PromotedSide
from neuron_attribution.traces import TraceNodeKind
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

Member = TypeVar("Member", bound=Enum)


class EnumTable(Generic[Member]):
    """One enum in both forms. `default` is what the unspecified value stands for; None means it is refused."""

    def __init__(self, kind: type[Member], values: Mapping[str, int], prefix: str, default: Member | None) -> None:
        self._names = {member: f"{prefix}_{member.name}" for member in kind if f"{prefix}_{member.name}" in values}
        self._members = {values[name]: member for member, name in self._names.items()}
        if default is not None:
            self._members[0] = default
            self._names.setdefault(default, f"{prefix}_UNSPECIFIED")
        self._numbers = {member: values[name] for member, name in self._names.items()}

    def encode(self, member: Member) -> Any:  # noqa: ANN401 - each enum of protobuf has a type of its own
        """The protobuf value."""
        return self._numbers[member]

    def from_request(self, number: int, field: str) -> Member:
        """The member of a request's value; an unknown one is the caller's mistake."""
        if number not in self._members:
            choices = ", ".join(self._names.values())
            raise InvalidArgumentError.of(field, f"{number} is not a value of this enum; give one of {choices}")
        return self._members[number]

    def from_result(self, number: int) -> Member:
        """The member of a result's value; an unknown one means a newer server."""
        try:
            return self._members[number]
        except KeyError:
            message = f"the server answered with the unknown value {number}; upgrade neuron-attribution"
            raise InternalError(message) from None

    def known(self, number: int) -> bool:
        """Whether the value has a member."""
        return number in self._members


def _values(enum: type[int]) -> dict[str, int]:
    return dict(enum.items())  # type: ignore[attr-defined]  # protobuf's enum types are mappings by their metaclass


PARTS = EnumTable(Part, _values(messages.Part), "PART", None)
AGGREGATES = EnumTable(Aggregate, _values(messages.Aggregate), "AGGREGATE", None)
DIRECTIONS = EnumTable(Direction, _values(messages.Direction), "DIRECTION", Direction.INCREASE)
SCORING_METHODS = EnumTable(
    ScoringMethod, _values(messages.ScoringMethod), "SCORING_METHOD", ScoringMethod.LOG_PROBABILITY_INCREASE
)
SUBKEYS = EnumTable(Subkey, _values(messages.SubkeyChoice), "SUBKEY_CHOICE", Subkey.UP)
SIDES = EnumTable(Side, _values(messages.NeuronSide), "NEURON_SIDE", Side.SUBVALUE)
PROMOTED_SIDES = EnumTable(PromotedSide, _values(messages.PromotedSide), "PROMOTED_SIDE", PromotedSide.UNKNOWN)
COMPONENT_KINDS = EnumTable(ComponentKind, _values(messages.ComponentKind), "COMPONENT_KIND", None)
MIXERS = EnumTable(Mixer, _values(messages.Mixer), "MIXER", Mixer.UNKNOWN)
LAYER_PART_KINDS = EnumTable(LayerPartKind, _values(messages.LayerPartKind), "LAYER_PART_KIND", None)
FINISH_REASONS = EnumTable(FinishReason, _values(messages.FinishReason), "FINISH_REASON", None)
TRACE_NODE_KINDS = EnumTable(TraceNodeKind, _values(messages.TraceNodeKind), "TRACE_NODE_KIND", None)
