"""What the synchronous and the asynchronous client share: everything but the call itself."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Generic, TypedDict, TypeVar, Unpack, cast

import grpc
from google.protobuf.message import Message

from neuron_attribution import convert
from neuron_attribution.conversations.messages import Conversation
from neuron_attribution.conversations.written import (
    ConversationArguments,
    PromptLike,
    TextOrIds,
    read_prompt,
    text_or_ids,
)
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.generation import Sampling
from neuron_attribution.neurons import (
    AttentionNeuron,
    FfnNeuron,
    Head,
    Neuron,
    QuerySource,
    parse_head,
    parse_neuron,
    parse_query_source,
)
from neuron_attribution.requests import (
    Aggregate,
    AttributeOptions,
    AttributeRequest,
    Direction,
    InterveneRequest,
    Intervention,
    InterventionSet,
    Part,
    ProjectNeuronRequest,
    ScoringMethod,
    Side,
    Span,
    Subkey,
    TokenizeRequest,
)
from neuron_attribution.results import AttributeResult, InterveneResult, ModelInfo, ProjectNeuronResult, TokenizeResult
from neuron_attribution.traces import Trace, TraceOptions, TraceRequest
from neuron_attribution.transport.changes import NamedLike, one_set
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services

_SHORT = ("zero", "scale", "set", "explained_position_only")
_REMEDY = "to zero neurons, write zero=['24.1005', '23.h4']; for several sets, [[Intervention(Zero(), (neuron,))], …]"

Result = TypeVar("Result")
Kind = TypeVar("Kind", bound=Enum)
NeuronLike = Neuron | str
QuerySourceLike = QuerySource | Neuron | str


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One call: the method, what is sent, and how the answer is read."""

    method: str
    request: Message
    read: Callable[[Any], Result]


class AttributeArguments(ConversationArguments, total=False):
    """What `attribute` takes besides the prompt: the fields of AttributeRequest and AttributeOptions.

    Messages may stand in place of a prompt. Enums are also accepted by their values ("increase"), neurons as they are
    written ("24.1005").
    """

    target: str | int | None
    completion: TextOrIds | None
    generate: int | None
    sampling: Sampling | None
    span: Span | tuple[int, int] | None
    contrast_completion: TextOrIds | None
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
    query_from: Iterable[QuerySourceLike]
    final_norm_scales: Iterable[float]
    aggregate: Aggregate | str | None
    aggregate_only: bool


class InterveneArguments(ConversationArguments, total=False):
    """What `intervene` takes besides the prompt and the sets: the fields of InterveneRequest, or one set in short.

    Messages may stand in place of a prompt. `zero` names neurons, heads ("23.h4") and parts of layers ("7.ffn");
    `scale` and `set` give each name its number.
    """

    zero: NamedLike | Iterable[NamedLike]
    scale: Mapping[NamedLike, float]
    set: Mapping[NamedLike, float]
    explained_position_only: bool
    target: str | int | None
    generate: int
    sampling: Sampling | None
    add_special_tokens: bool | None
    freeze_scale: bool
    model: str


class TraceArguments(ConversationArguments, total=False):
    """What `trace` takes besides the prompt: the fields of TraceRequest and TraceOptions.

    Messages may stand in place of a prompt. The subkey is also accepted by its value ("gate").
    """

    target: str | int | None
    completion: TextOrIds | None
    span: Span | tuple[int, int] | None
    contrast: str | int | None
    add_special_tokens: bool | None
    model: str
    nodes: int
    edge_share: float
    subkey: Subkey | str
    measure: bool
    heads: bool
    screened: int | None
    projection_top_k: int
    leave_out_always_on: bool


class ProjectArguments(TypedDict, total=False):
    """What `project_neuron` takes besides the neurons: the fields of ProjectNeuronRequest."""

    side: Side | str
    through: Head | str | None
    top_k: int
    subkey: Subkey | str
    model: str


def attribute(prompt: PromptLike | None = None, **arguments: Unpack[AttributeArguments]) -> Call[AttributeResult]:
    """The call for an attribution."""
    request = attribute_request(prompt, **arguments)
    return Call("Attribute", convert.attribute_request_to_proto(request), convert.attribute_result_from_proto)


def attribute_request(prompt: PromptLike | None = None, **arguments: Unpack[AttributeArguments]) -> AttributeRequest:
    """The request that keyword arguments make."""
    fields = _read_fields(cast(dict[str, Any], arguments))
    asked = read_prompt(prompt, fields)
    options = {name: fields.pop(name) for name in AttributeOptions.__dataclass_fields__ if name in fields}
    _check_names(fields, AttributeRequest, AttributeOptions)
    return AttributeRequest(prompt=asked, options=AttributeOptions(**options), **fields)


def project_neuron(
    neurons: NeuronLike | Iterable[NeuronLike], **arguments: Unpack[ProjectArguments]
) -> Call[ProjectNeuronResult]:
    """The call for the projections of one or many neurons."""
    several = [neurons] if isinstance(neurons, str | FfnNeuron | AttentionNeuron) else neurons
    fields = _read_fields({"neurons": several, **arguments})
    message = convert.project_neuron_request_to_proto(ProjectNeuronRequest(**fields))
    return Call("ProjectNeuron", message, convert.project_neuron_result_from_proto)


def intervene(
    prompt: PromptLike | None = None,
    sets: Iterable[Iterable[Intervention]] | None = None,
    **arguments: Unpack[InterveneArguments],
) -> Call[InterveneResult]:
    """The call for reruns of a prompt with neurons changed."""
    fields = cast(dict[str, Any], arguments)
    short = {name: fields.pop(name) for name in _SHORT if name in fields}
    if sets is not None and short:
        raise InvalidArgumentError.of("sets", f"and {', '.join(short)} exclude each other; give one of them")
    read = (_one_set(**short),) if sets is None else _read_sets(sets)
    request = InterveneRequest(prompt=read_prompt(prompt, fields), sets=read, **fields)
    return Call("Intervene", convert.intervene_request_to_proto(request), convert.intervene_result_from_proto)


def trace(prompt: PromptLike | None = None, **arguments: Unpack[TraceArguments]) -> Call[Trace]:
    """The call for a graph."""
    fields = _read_fields(cast(dict[str, Any], arguments))
    asked = read_prompt(prompt, fields)
    options = {name: fields.pop(name) for name in TraceOptions.__dataclass_fields__ if name in fields}
    _check_names(fields, TraceRequest, TraceOptions)
    request = TraceRequest(prompt=asked, options=TraceOptions(**options), **fields)
    return Call("Trace", convert.trace_request_to_proto(request), convert.trace_from_proto)


def tokenize(
    text: str | Conversation | None,
    add_special_tokens: bool | None,
    model: str,
    **arguments: Unpack[ConversationArguments],
) -> Call[TokenizeResult]:
    """The call for the tokens of a text or a conversation."""
    asked = read_prompt(text, cast(dict[str, Any], arguments), "text")
    if isinstance(asked, tuple):
        raise InvalidArgumentError.of("text", f"{text!r} is no text; give one, or messages=[…]")
    request = TokenizeRequest(text=asked, add_special_tokens=add_special_tokens, model=model)
    return Call("Tokenize", convert.tokenize_request_to_proto(request), convert.tokenize_result_from_proto)


def get_model(model: str) -> Call[ModelInfo]:
    """The call for the description of the served model."""
    return Call("GetModel", messages.GetModelRequest(model=model), convert.model_info_from_proto)


def stub(channel: grpc.Channel | grpc.aio.Channel) -> services.NeuronAttributionServiceStub:
    """The generated stub, which fits either kind of channel. Generated code is not typed."""
    return services.NeuronAttributionServiceStub(channel)  # type: ignore[no-untyped-call]


def _check_names(fields: Mapping[str, object], kind: type[Any], options: type[Any]) -> None:
    """Raise TypeError, as Python does, for an argument that there is not."""
    known = {field.name for field in dataclasses.fields(kind)} - {"prompt", "options", "sets"}
    for name in fields.keys() - known:
        near = difflib.get_close_matches(name, {*known, *options.__dataclass_fields__}, 1)
        raise TypeError(f"there is no argument {name!r}" + "".join(f"; did you mean {each!r}?" for each in near))


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


def _read_query_sources(sources: Iterable[QuerySourceLike], field: str) -> tuple[QuerySource, ...]:
    if isinstance(sources, str):
        raise InvalidArgumentError.of(field, f"{sources!r} is no list of neurons; write [{sources!r}]")
    return tuple(_read_query_source(source, f"{field}[{index}]") for index, source in enumerate(sources))


def _read_query_source(source: QuerySourceLike, field: str) -> QuerySource:
    if isinstance(source, str):
        return _parsed(parse_query_source, source, field)
    return source if isinstance(source, QuerySource) else QuerySource(source)


def _one_set(
    zero: NamedLike | Iterable[NamedLike] = (),
    scale: Mapping[NamedLike, float] | None = None,
    set: Mapping[NamedLike, float] | None = None,
    *,
    explained_position_only: bool = False,
) -> InterventionSet:
    for field, numbers in (("scale", scale), ("set", set)):
        if not isinstance(numbers, Mapping | None):
            raise InvalidArgumentError.of(field, f"{numbers!r} gives no name its number; write {{'24.1005': 2}}")
    try:
        return one_set(zero, scale or {}, set or {}, explained_position_only=explained_position_only)
    except ValueError as error:
        raise InvalidArgumentError.of("sets", str(error)) from None


def _read_sets(sets: Iterable[Iterable[Intervention]]) -> tuple[InterventionSet, ...]:
    if isinstance(sets, str | Intervention):
        raise InvalidArgumentError.of("sets", f"{sets!r} is no list of sets; {_REMEDY}")
    return tuple(_read_interventions(each, f"sets[{index}].interventions") for index, each in enumerate(sets))


def _read_interventions(interventions: Iterable[Intervention], field: str) -> tuple[Intervention, ...]:
    if isinstance(interventions, Intervention):
        raise InvalidArgumentError.of(field, "is a single intervention; give a sequence of them")
    if isinstance(interventions, str) or not isinstance(interventions, Iterable):
        raise InvalidArgumentError.of(field, f"{interventions!r} is no sequence of interventions; {_REMEDY}")
    return tuple(_read_intervention(each, f"{field}[{index}]") for index, each in enumerate(interventions))


def _read_intervention(intervention: Intervention, field: str) -> Intervention:
    """The intervention with the neurons and heads that are written as texts read."""
    if not isinstance(intervention, Intervention):
        raise InvalidArgumentError.of(field, f"{intervention!r} is no Intervention; {_REMEDY}")
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


def _read_completion(value: TextOrIds | None, field: str) -> str | tuple[int, ...] | None:
    return None if value is None else text_or_ids(value, field)


def _read_span(value: Span | tuple[int, int] | None, field: str) -> Span | None:
    if value is None or isinstance(value, Span):
        return value
    try:
        start, end = value
    except (TypeError, ValueError):
        raise InvalidArgumentError.of(field, f"{value!r} is no pair of positions; write (start, end)") from None
    return Span(start, end)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "completion": _read_completion,
    "contrast_completion": _read_completion,
    "span": _read_span,
    "aggregate": lambda value, field: None if value is None else _enum_reader(Aggregate)(value, field),
    "parts": _read_parts,
    "neurons": _read_neurons,
    "direction": _enum_reader(Direction),
    "scoring_method": _enum_reader(ScoringMethod),
    "subkey": _enum_reader(Subkey),
    "side": _enum_reader(Side),
    "through": _read_head,
    "interventions": _read_interventions,
    "query_from": _read_query_sources,
    "final_norm_scales": lambda scales, _: tuple(scales),
}
