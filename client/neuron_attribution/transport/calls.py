"""What the synchronous and the asynchronous client share: everything but the call itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Generic, TypedDict, TypeVar, Unpack, cast

import grpc
from google.protobuf.message import Message

from neuron_attribution import convert
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron, parse_head, parse_neuron
from neuron_attribution.requests import (
    AttributeOptions,
    AttributeRequest,
    Direction,
    InterveneRequest,
    Intervention,
    Part,
    ProjectNeuronRequest,
    ScoringMethod,
    Side,
    Subkey,
    TokenizeRequest,
)
from neuron_attribution.results import AttributeResult, InterveneResult, ModelInfo, ProjectNeuronResult, TokenizeResult
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services

Result = TypeVar("Result")
Kind = TypeVar("Kind", bound=Enum)
NeuronLike = Neuron | str
TextOrIds = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One call: the method, what is sent, and how the answer is read."""

    method: str
    request: Message
    read: Callable[[Any], Result]


class AttributeArguments(TypedDict, total=False):
    """What `attribute` takes besides the prompt: the fields of AttributeRequest and AttributeOptions.

    Enums are also accepted by their values ("increase"), neurons as they are written ("24.1005").
    """

    target: str | int | None
    completion: TextOrIds | None
    generate: int | None
    contrast: str | int | None
    add_special_tokens: bool | None
    model: str
    parts: Iterable[Part | str]
    top_k: int
    direction: Direction | str
    scoring_method: ScoringMethod | str
    projection_top_k: int
    query_sources: int
    subkey: Subkey | str
    include_final_norm_bias: bool
    neurons: Iterable[NeuronLike]
    exhaustive: bool
    position_projection_top_k: int
    head_top_k: int
    attention_neurons_over_positions: bool
    interventions: Iterable[Intervention]


class InterveneArguments(TypedDict, total=False):
    """What `intervene` takes besides the prompt and the sets: the fields of InterveneRequest."""

    target: str | int | None
    generate: int
    add_special_tokens: bool | None
    model: str


class ProjectArguments(TypedDict, total=False):
    """What `project_neuron` takes besides the neurons: the fields of ProjectNeuronRequest."""

    side: Side | str
    through: Head | str | None
    top_k: int
    subkey: Subkey | str
    model: str


def attribute(prompt: TextOrIds, **arguments: Unpack[AttributeArguments]) -> Call[AttributeResult]:
    """The call for an attribution."""
    fields = _read_fields(cast(dict[str, Any], arguments))
    options = {name: fields.pop(name) for name in AttributeOptions.__dataclass_fields__ if name in fields}
    request = AttributeRequest(prompt=_text_or_ids(prompt), options=AttributeOptions(**options), **fields)
    return Call("Attribute", convert.attribute_request_to_proto(request), convert.attribute_result_from_proto)


def project_neuron(
    neurons: NeuronLike | Iterable[NeuronLike], **arguments: Unpack[ProjectArguments]
) -> Call[ProjectNeuronResult]:
    """The call for the projections of one or many neurons."""
    several = [neurons] if isinstance(neurons, str | FfnNeuron | AttentionNeuron) else neurons
    fields = _read_fields({"neurons": several, **arguments})
    message = convert.project_neuron_request_to_proto(ProjectNeuronRequest(**fields))
    return Call("ProjectNeuron", message, convert.project_neuron_result_from_proto)


def intervene(
    prompt: TextOrIds, sets: Iterable[Iterable[Intervention]], **arguments: Unpack[InterveneArguments]
) -> Call[InterveneResult]:
    """The call for reruns of a prompt with neurons changed."""
    read = tuple(_read_interventions(each, f"sets[{index}].interventions") for index, each in enumerate(sets))
    request = InterveneRequest(prompt=_text_or_ids(prompt), sets=read, **arguments)
    return Call("Intervene", convert.intervene_request_to_proto(request), convert.intervene_result_from_proto)


def tokenize(text: str, add_special_tokens: bool | None, model: str) -> Call[TokenizeResult]:
    """The call for the tokens of a text."""
    request = TokenizeRequest(text=text, add_special_tokens=add_special_tokens, model=model)
    return Call("Tokenize", convert.tokenize_request_to_proto(request), convert.tokenize_result_from_proto)


def get_model(model: str) -> Call[ModelInfo]:
    """The call for the description of the served model."""
    return Call("GetModel", messages.GetModelRequest(model=model), convert.model_info_from_proto)


def stub(channel: grpc.Channel | grpc.aio.Channel) -> services.NeuronAttributionServiceStub:
    """The generated stub, which fits either kind of channel. Generated code is not typed."""
    return services.NeuronAttributionServiceStub(channel)  # type: ignore[no-untyped-call]


def _read_fields(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: _READERS[name](value, name) if name in _READERS else value for name, value in arguments.items()}


def _enum_reader(kind: type[Kind]) -> Callable[[Kind | str, str], Kind]:
    def read(value: Kind | str, field: str) -> Kind:
        try:
            return kind(value)
        except ValueError:
            choices = ", ".join(member.value for member in kind)
            raise InvalidArgumentError.of(field, f"{value!r} is unknown; give one of {choices}") from None

    return read


def _read_parts(parts: Iterable[Part | str], field: str) -> frozenset[Part]:
    read = _enum_reader(Part)
    return frozenset(read(part, field) for part in parts)


def _read_neurons(neurons: Iterable[NeuronLike], field: str) -> tuple[Neuron, ...]:
    return tuple(
        _parsed(parse_neuron, neuron, f"{field}[{index}]") if isinstance(neuron, str) else neuron
        for index, neuron in enumerate(neurons)
    )


def _read_interventions(interventions: Iterable[Intervention], field: str) -> tuple[Intervention, ...]:
    if isinstance(interventions, Intervention):
        raise InvalidArgumentError.of(field, "is a single intervention; give a sequence of them")
    return tuple(_read_intervention(each, f"{field}[{index}]") for index, each in enumerate(interventions))


def _read_intervention(intervention: Intervention, field: str) -> Intervention:
    """The intervention with the neurons and heads that are written as texts read."""
    heads = [_read_head(head, f"{field}.heads[{index}]") for index, head in enumerate(intervention.heads)]
    return replace(
        intervention,
        neurons=_read_neurons(intervention.neurons, f"{field}.neurons"),
        heads=tuple(head for head in heads if head is not None),
        layers=tuple(intervention.layers),
    )


def _read_head(head: Head | str | None, field: str) -> Head | None:
    return _parsed(parse_head, head, field) if isinstance(head, str) else head


def _parsed(parse: Callable[[str], Result], text: str, field: str) -> Result:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidArgumentError.of(field, str(error)) from None


def _text_or_ids(value: TextOrIds) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else tuple(value)


def _read_completion(value: TextOrIds | None, field: str) -> str | tuple[int, ...] | None:
    return None if value is None else _text_or_ids(value)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "completion": _read_completion,
    "parts": _read_parts,
    "neurons": _read_neurons,
    "direction": _enum_reader(Direction),
    "scoring_method": _enum_reader(ScoringMethod),
    "subkey": _enum_reader(Subkey),
    "side": _enum_reader(Side),
    "through": _read_head,
    "interventions": _read_interventions,
}
