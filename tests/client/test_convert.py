"""Conversion: everything survives the round trip, and a request that makes no sense is refused by field."""

from enum import Enum

import pytest
from client.strategies import (
    SCALARS,
    TEXTS,
    assert_same,
    attribute_requests,
    instances,
    intervene_requests,
    project_neuron_requests,
    trace_requests,
)
from examples import examples
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from neuron_attribution import convert
from neuron_attribution.convert import enums
from neuron_attribution.errors import InternalError, InvalidArgumentError
from neuron_attribution.generation import Sampling
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import (
    ALL_PARTS,
    AttributeOptions,
    AttributeRequest,
    Direction,
    InterveneRequest,
    Intervention,
    LayerPart,
    LayerPartKind,
    Part,
    ProjectNeuronRequest,
    Scale,
    ScoringMethod,
    SetTo,
    Side,
    Span,
    Subkey,
    TokenizeRequest,
)
from neuron_attribution.results import (
    AttributeResult,
    ComponentKind,
    InterveneResult,
    ModelInfo,
    ProjectNeuronResult,
    PromotedSide,
    TokenizeResult,
)
from neuron_attribution.traces import Trace, TraceNodeKind, TraceRequest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

RELAXED = settings(deadline=None, max_examples=examples(40), suppress_health_check=list(HealthCheck))

TABLES = [
    (enums.PARTS, Part, messages.Part),
    (enums.DIRECTIONS, Direction, messages.Direction),
    (enums.SCORING_METHODS, ScoringMethod, messages.ScoringMethod),
    (enums.SUBKEYS, Subkey, messages.SubkeyChoice),
    (enums.SIDES, Side, messages.NeuronSide),
    (enums.PROMOTED_SIDES, PromotedSide, messages.PromotedSide),
    (enums.COMPONENT_KINDS, ComponentKind, messages.ComponentKind),
    (enums.TRACE_NODE_KINDS, TraceNodeKind, messages.TraceNodeKind),
    (enums.LAYER_PART_KINDS, LayerPartKind, messages.LayerPartKind),
]


def over_the_wire(message: Message) -> Message:
    """The message as the other side gets it."""
    return type(message).FromString(message.SerializeToString())


@RELAXED
@given(attribute_requests())
def test_attribute_request_round_trip(request_: AttributeRequest) -> None:
    message = over_the_wire(convert.attribute_request_to_proto(request_))
    assert convert.attribute_request_from_proto(message) == request_


@RELAXED
@given(project_neuron_requests())
def test_project_neuron_request_round_trip(request_: ProjectNeuronRequest) -> None:
    message = over_the_wire(convert.project_neuron_request_to_proto(request_))
    assert convert.project_neuron_request_from_proto(message) == request_


@RELAXED
@given(intervene_requests())
def test_intervene_request_round_trip(request_: InterveneRequest) -> None:
    message = over_the_wire(convert.intervene_request_to_proto(request_))
    assert convert.intervene_request_from_proto(message) == request_


@RELAXED
@given(instances(InterveneResult))
def test_intervene_result_round_trip(result: InterveneResult) -> None:
    message = over_the_wire(convert.intervene_result_to_proto(result))
    assert_same(convert.intervene_result_from_proto(message), result)


@RELAXED
@given(trace_requests())
def test_trace_request_round_trip(request_: TraceRequest) -> None:
    message = over_the_wire(convert.trace_request_to_proto(request_))
    assert convert.trace_request_from_proto(message) == request_


@RELAXED
@given(instances(Trace))
def test_trace_round_trip(trace: Trace) -> None:
    """In one message, and as a worker's part of it with what completes that."""
    message = over_the_wire(convert.trace_to_proto(trace))
    assert_same(convert.trace_from_proto(message), trace)
    written = convert.graph_to_proto(trace.model, trace.graph).SerializeToString()
    whole = convert.completed_trace(written, trace.tokens, trace.timings, trace.origins)
    assert messages.TraceResponse.FromString(whole) == message


NEURONS = [messages.Neuron(ffn=messages.FfnNeuron(layer=1))]


@pytest.mark.parametrize(
    ("sets", "field", "remedy"),
    [
        ([], "sets", "at least one set"),
        ([{}], "sets[0].interventions", "at least one intervention"),
        ([{"interventions": [{"zero": True}]}], "sets[0].interventions[0].neurons", "at least one neuron"),
        ([{"interventions": [{"neurons": NEURONS}]}], "sets[0].interventions[0].operation", "one of zero, scale"),
        ([{"interventions": [{"neurons": NEURONS, "zero": False}]}], "sets[0].interventions[0].zero", "set it to true"),
        (
            [{"interventions": [{"neurons": NEURONS, "scale": float("nan")}]}],
            "sets[0].interventions[0].scale",
            "finite",
        ),
        ([{"interventions": [{"neurons": NEURONS, "set": float("inf")}]}], "sets[0].interventions[0].set", "finite"),
        ([{"interventions": [{"neurons": NEURONS, "set": -1e39}]}], "sets[0].interventions[0].set", "finite"),
        (
            [{"interventions": [{"neurons": [messages.Neuron()], "zero": True}]}],
            "sets[0].interventions[0].neurons[0]",
            "either ffn or attention",
        ),
        (
            [{"interventions": [{"layers": [messages.LayerPart(layer=1)], "zero": True}]}],
            "sets[0].interventions[0].layers[0].kind",
            "LAYER_PART_KIND_ATTENTION, LAYER_PART_KIND_FFN",
        ),
    ],
)
def test_interventions_that_make_no_sense(sets: list, field: str, remedy: str) -> None:
    message = messages.InterveneRequest(prompt=messages.Prompt(text="a"))
    message.sets.extend(
        messages.InterventionSet(interventions=[messages.Intervention(**one) for one in each.get("interventions", [])])
        for each in sets
    )
    with pytest.raises(InvalidArgumentError, match=remedy) as caught:
        convert.intervene_request_from_proto(over_the_wire(message))
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("operation", [Scale(float("nan")), SetTo(float("-inf")), SetTo(1e39)])
def test_numbers_no_activation_can_have_are_refused_before_they_are_sent(operation: Scale | SetTo) -> None:
    request = InterveneRequest(prompt="a", sets=((Intervention(operation, layers=(LayerPart(0, "ffn"),)),),))
    with pytest.raises(InvalidArgumentError, match=r"sets\[0\].interventions\[0\].s.*finite"):
        convert.intervene_request_to_proto(request)


def test_project_neuron_request_through_a_head_round_trip() -> None:
    request = ProjectNeuronRequest(neurons=(FfnNeuron(0, 3),), through=Head(0, 0), side=Side.SUBKEY)
    message = over_the_wire(convert.project_neuron_request_to_proto(request))
    assert convert.project_neuron_request_from_proto(message) == request


@RELAXED
@given(instances(TokenizeRequest, text=TEXTS, model=SCALARS[str]))
def test_tokenize_request_round_trip(request_: TokenizeRequest) -> None:
    message = over_the_wire(convert.tokenize_request_to_proto(request_))
    assert convert.tokenize_request_from_proto(message) == request_


@RELAXED
@given(instances(AttributeResult))
def test_attribute_result_round_trip(result: AttributeResult) -> None:
    message = over_the_wire(convert.attribute_result_to_proto(result))
    assert_same(convert.attribute_result_from_proto(message), result)


@RELAXED
@given(instances(ProjectNeuronResult))
def test_project_neuron_result_round_trip(result: ProjectNeuronResult) -> None:
    message = over_the_wire(convert.project_neuron_result_to_proto(result))
    assert convert.project_neuron_result_from_proto(message) == result


@RELAXED
@given(instances(TokenizeResult))
def test_tokenize_result_round_trip(result: TokenizeResult) -> None:
    message = over_the_wire(convert.tokenize_result_to_proto(result))
    assert convert.tokenize_result_from_proto(message) == result


@RELAXED
@given(instances(ModelInfo))
def test_model_info_round_trip(info: ModelInfo) -> None:
    message = over_the_wire(convert.model_info_to_proto(info))
    assert convert.model_info_from_proto(message) == info


@pytest.mark.parametrize(("table", "kind", "wire"), TABLES, ids=[kind.__name__ for _, kind, _ in TABLES])
def test_enum_tables_are_exhaustive(table: enums.EnumTable, kind: type[Enum], wire: type) -> None:
    """Every member has a value and every value but the unspecified one a member of its own."""
    assert {table.from_result(table.encode(member)) for member in kind} == set(kind)
    named = [number for number in wire.values() if number != 0]
    members = [table.from_result(number) for number in named]
    assert len(set(members)) == len(members)
    assert all(table.encode(member) == number for member, number in zip(members, named, strict=True))


def test_an_empty_request_means_the_defaults() -> None:
    message = messages.AttributeRequest(prompt=messages.Prompt(text="a"))
    request = convert.attribute_request_from_proto(message)
    assert request == AttributeRequest(prompt="a")
    assert request.options == AttributeOptions()
    projection = messages.ProjectNeuronRequest(neurons=[messages.Neuron(ffn=messages.FfnNeuron())])
    expected = ProjectNeuronRequest(neurons=(FfnNeuron(0, 0),))
    assert convert.project_neuron_request_from_proto(projection) == expected


def test_zero_tokens_per_neuron_is_not_the_default() -> None:
    message = messages.AttributeRequest(prompt=messages.Prompt(text="a"), projection_top_k=0)
    assert convert.attribute_request_from_proto(message).options.projection_top_k == 0


def test_all_parts_travel_as_none() -> None:
    assert not convert.attribute_request_to_proto(AttributeRequest(prompt="a")).parts
    assert AttributeOptions().parts == ALL_PARTS


TEXT = messages.Prompt(text="a")
FFN = messages.Neuron(ffn=messages.FfnNeuron(layer=1, index=2))
ANSWER = messages.Completion(text="b")
SUM = {"aggregate": messages.AGGREGATE_SUM}
ATTENTION = messages.Neuron(attention=messages.AttentionNeuron(layer=1, head=1, index=2))


def attribute(**fields: object) -> messages.AttributeRequest:
    return messages.AttributeRequest(**{"prompt": TEXT, **fields})


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("prompt.source", messages.AttributeRequest()),
        ("prompt.source", attribute(prompt=messages.Prompt(add_special_tokens=True))),
        ("prompt.text", attribute(prompt=messages.Prompt(text=""))),
        ("prompt.token_ids", attribute(prompt=messages.Prompt(token_ids=messages.TokenIds()))),
        (
            "prompt.add_special_tokens",
            attribute(prompt=messages.Prompt(token_ids=messages.TokenIds(ids=[1]), add_special_tokens=False)),
        ),
        ("target.choice", attribute(target=messages.TokenChoice())),
        ("target.text", attribute(target=messages.TokenChoice(text=""))),
        ("contrast.choice", attribute(contrast=messages.TokenChoice())),
        ("completion.source", attribute(completion=messages.Completion())),
        ("completion.text", attribute(completion=messages.Completion(text=""))),
        ("completion.token_ids", attribute(completion=messages.Completion(token_ids=messages.TokenIds()))),
        ("generate", attribute(generate=0)),
        ("sampling", attribute(sampling=messages.Sampling())),
        ("sampling.temperature", attribute(generate=1, sampling=messages.Sampling(temperature=0))),
        ("sampling.temperature", attribute(generate=1, sampling=messages.Sampling(temperature=100.1))),
        ("sampling.temperature", attribute(generate=1, sampling=messages.Sampling(temperature=float("nan")))),
        ("sampling.top_p", attribute(generate=1, sampling=messages.Sampling(top_p=0))),
        ("sampling.top_p", attribute(generate=1, sampling=messages.Sampling(top_p=1.1))),
        ("parts[1]", attribute(parts=[messages.PART_LAYERS, messages.PART_UNSPECIFIED])),
        ("parts[0]", attribute(parts=[99])),
        ("top_k", attribute(top_k=0)),
        ("query_sources", attribute(query_sources=0)),
        ("head_top_k", attribute(head_top_k=0)),
        ("direction", attribute(direction=99)),
        ("scoring_method", attribute(scoring_method=99)),
        ("subkey", attribute(subkey=99)),
        ("neurons[2]", attribute(neurons=[FFN, ATTENTION, messages.Neuron()])),
        ("span.start", attribute(span=messages.Span(start=0, end=2))),
        ("span.end", attribute(span=messages.Span(start=2, end=2))),
        ("aggregate", attribute(aggregate=99)),
        ("aggregate_only", attribute(aggregate_only=True)),
        ("contrast_completion", attribute(completion=ANSWER, contrast_completion=ANSWER)),
        ("contrast_completion", attribute(contrast_completion=ANSWER, **SUM)),
        (
            "contrast_completion",
            attribute(completion=ANSWER, contrast_completion=ANSWER, contrast=messages.TokenChoice(id=1), **SUM),
        ),
        ("contrast_completion.source", attribute(completion=ANSWER, contrast_completion=messages.Completion(), **SUM)),
        ("scoring_method", attribute(scoring_method=messages.SCORING_METHOD_NORM, **SUM)),
        ("exhaustive", attribute(exhaustive=True, **SUM)),
        ("parts[1]", attribute(parts=[messages.PART_LAYERS, messages.PART_QUERY_LAYERS], aggregate_only=True, **SUM)),
        ("parts[0]", attribute(parts=[messages.PART_ATTENTION_PATTERNS], aggregate_only=True, **SUM)),
    ],
)
def test_attribute_requests_are_refused_by_field(field: str, message: messages.AttributeRequest) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        convert.attribute_request_from_proto(message)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("neurons", {}),
        ("neurons[0]", {"neurons": [messages.Neuron()]}),
        ("neurons[1]", {"neurons": [FFN, ATTENTION], "through": messages.Head()}),
        ("side", {"neurons": [FFN], "side": 99}),
        ("top_k", {"neurons": [FFN], "top_k": 0}),
        ("subkey", {"neurons": [FFN], "subkey": messages.SUBKEY_CHOICE_SUBVALUE}),
    ],
)
def test_projection_requests_are_refused_by_field(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        convert.project_neuron_request_from_proto(messages.ProjectNeuronRequest(**fields))
    assert [violation.field for violation in caught.value.violations] == [field]


def test_interventions_that_generate_nothing_draw_nothing() -> None:
    request = InterveneRequest(prompt="a", sets=((Intervention(heads=(Head(0, 0),)),),), sampling=Sampling())
    with pytest.raises(InvalidArgumentError, match="sampling: only generated tokens are sampled; set generate"):
        convert.intervene_request_from_proto(convert.intervene_request_to_proto(request))


def test_an_empty_text_is_not_tokenized() -> None:
    with pytest.raises(InvalidArgumentError, match="text: is empty"):
        convert.tokenize_request_from_proto(messages.TokenizeRequest())


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("explain", AttributeRequest(prompt="a", target="b", completion="c")),
        ("explain", AttributeRequest(prompt="a", target=0, generate=0)),
        ("explain", AttributeRequest(prompt="a", generate=1, span=Span(1, 2))),
        ("span.start", AttributeRequest(prompt="a", span=Span(-1, 2))),
        ("contrast_completion.token_ids.ids[0]", AttributeRequest(prompt="a", contrast_completion=(-1,))),
        ("target.id", AttributeRequest(prompt="a", target=-1)),
        ("sampling.temperature", AttributeRequest(prompt="a", generate=1, sampling=Sampling(temperature="hot"))),
        ("sampling.top_k", AttributeRequest(prompt="a", generate=1, sampling=Sampling(top_k=-1))),
        ("sampling.seed", AttributeRequest(prompt="a", generate=1, sampling=Sampling(seed=2**64))),
        ("prompt.token_ids.ids[1]", AttributeRequest(prompt=(1, 2**32))),
        ("prompt.text", AttributeRequest(prompt="\ud800")),
        ("top_k", AttributeRequest(prompt="a", options=AttributeOptions(top_k=1.5))),
        ("parts", AttributeRequest(prompt="a", options=AttributeOptions(parts=frozenset()))),
        (
            "neurons[0].head",
            AttributeRequest(prompt="a", options=AttributeOptions(neurons=(AttentionNeuron(1, -1, 1),))),
        ),
    ],
)
def test_what_no_message_can_hold_is_refused_by_field(field: str, request_: AttributeRequest) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        convert.attribute_request_to_proto(request_)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_newer_server_is_understood_as_far_as_possible() -> None:
    info = messages.GetModelResponse(supported_parts=[messages.PART_LAYERS, 99])
    assert convert.model_info_from_proto(info).supported_parts == (Part.LAYERS,)
    with pytest.raises(InternalError, match="unknown value 99; upgrade"):
        enums.COMPONENT_KINDS.from_result(99)


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 16_383, 16_384, 3_000_000])
def test_a_streams_answer_is_written_without_reading_the_response(length) -> None:
    response = messages.AttributeResponse(tokens=[messages.Token(id=7, text="x" * length)])
    whole = response.SerializeToString()
    serialized = convert.stream_answer("a key", (whole[:5], memoryview(whole)[5:]), 3)
    expected = messages.AttributeStreamResponse(key="a key", response=response, remaining=3)
    assert messages.AttributeStreamResponse.FromString(serialized) == expected


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 16_384, 300_000])
def test_explanations_are_parted_without_reading_the_response(length) -> None:
    predictions = [messages.TokenPrediction(token=messages.Token(id=7, text="x" * length))]
    explanations = [messages.Explanation(position=n, predictions=predictions) for n in range(3)]
    response = messages.AttributeResponse(model=messages.ModelIdentity(name="m"), explanations=explanations)
    shared, apart = convert.explanations_apart(response.SerializeToString())
    for part, explanation in zip(apart, explanations, strict=True):
        expected = messages.AttributeResponse(model=response.model, explanations=[explanation])
        assert messages.AttributeResponse.FromString(b"".join((*shared, part))) == expected


def test_an_aggregate_goes_with_the_last_explanation() -> None:
    """Alone where there is no other."""
    aggregate = messages.AggregateExplanation(log_probability=-3.0)
    for count in (2, 0):
        explanations = [messages.Explanation(position=n) for n in range(count)]
        response = messages.AttributeResponse(explanations=explanations, aggregate=aggregate)
        shared, apart = convert.explanations_apart(response.SerializeToString())
        parted = [messages.AttributeResponse.FromString(b"".join((*shared, part))) for part in apart]
        assert [each.HasField("aggregate") for each in parted] == [False] * (count - 1) + [True]
        assert [each for part in parted for each in part.explanations] == explanations
        assert parted[-1].aggregate == aggregate


def test_nothing_is_parted_where_nothing_is_explained() -> None:
    assert convert.explanations_apart(b"") == ([], [])
