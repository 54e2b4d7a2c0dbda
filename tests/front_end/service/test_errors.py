"""Every refusal of the contract: its code, its reason, its field; and the server goes on."""

from dataclasses import replace

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import AttributeOptions, Direction
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from service.fakes import FACTS, PROMPT, FakeEngine
from service.servers import PATIENCE, attribution, failure, running_server

LONG = "x" * 70


def ids(*numbers):
    return messages.TokenIds(ids=numbers)


def ffn(layer, index):
    return messages.Neuron(ffn=messages.FfnNeuron(layer=layer, index=index))


def attention(layer, head, index):
    return messages.Neuron(attention=messages.AttentionNeuron(layer=layer, head=head, index=index))


def source(neuron, position=None):
    return messages.QuerySource(neuron=neuron, position=position)


def choice(text):
    return messages.TokenChoice(text=text)


def projection(*neurons, **fields):
    return messages.ProjectNeuronRequest(neurons=neurons, **fields)


INVALID_ATTRIBUTIONS = {
    "prompt.source": messages.AttributeRequest(),
    "prompt.text": attribution(""),
    "prompt.token_ids": messages.AttributeRequest(prompt=messages.Prompt(token_ids=ids())),
    "prompt.token_ids.ids[1]": messages.AttributeRequest(prompt=messages.Prompt(token_ids=ids(1, 512))),
    "prompt.add_special_tokens": messages.AttributeRequest(
        prompt=messages.Prompt(token_ids=ids(1), add_special_tokens=True)
    ),
    "prompt": attribution(LONG),
    "target.choice": attribution(target=messages.TokenChoice()),
    "target.text": attribution(target=choice(" Parisian")),
    "target.id": attribution(target=messages.TokenChoice(id=512)),
    "completion.source": attribution(completion=messages.Completion()),
    "completion.text": attribution(completion=messages.Completion(text="")),
    "completion.token_ids.ids[0]": attribution(completion=messages.Completion(token_ids=ids(9999))),
    "completion": attribution(completion=messages.Completion(text=" is" * 5)),
    "generate": attribution(generate=5),
    "contrast": attribution(target=choice(" Paris"), contrast=choice(" Paris")),
    "contrast.text": attribution(contrast=choice("xyz")),
    "scoring_method": attribution(contrast=choice(" Rome"), scoring_method=messages.SCORING_METHOD_NORM),
    "parts[0]": attribution(parts=[messages.PART_UNSPECIFIED]),
    "top_k": attribution(top_k=0),
    "direction": attribution(direction=99),
    "projection_top_k": attribution(projection_top_k=1001),
    "query_sources": attribution(query_sources=0),
    "head_top_k": attribution(head_top_k=0),
    "position_projection_top_k": attribution(position_projection_top_k=1001),
    "neurons": attribution(neurons=[ffn(0, 0)] * 4),
    "neurons[0]": attribution(neurons=[messages.Neuron()]),
    "neurons[1].ffn.layer": attribution(neurons=[ffn(1, 0), ffn(2, 0)]),
    "neurons[0].ffn.index": attribution(neurons=[ffn(0, 64)]),
    "neurons[0].attention.layer": attribution(neurons=[attention(2, 0, 0)]),
    "neurons[0].attention.head": attribution(neurons=[attention(0, 4, 0)]),
    "neurons[0].attention.index": attribution(neurons=[attention(0, 0, 8)]),
    "query_from": attribution(query_from=[source(attention(0, 0, 0))] * 500),
    "query_from[0].neuron": attribution(query_from=[messages.QuerySource()]),
    "query_from[1].neuron.ffn.layer": attribution(query_from=[source(ffn(1, 0)), source(ffn(2, 0))]),
    "query_from[0].position": attribution(query_from=[source(attention(0, 0, 0), 6)]),
    "query_from[1].position": attribution(query_from=[source(ffn(0, 0)), source(ffn(0, 0), 1)]),
    "final_norm_scales": attribution(final_norm_scales=[1.0, 1.0]),
    "span.end": attribution(span=messages.Span(start=5, end=7)),
    "span": attribution(LONG[:20], span=messages.Span(start=1, end=6)),
    "aggregate_only": attribution(aggregate_only=True),
    "contrast_completion": attribution(
        completion=messages.Completion(text=" is"),
        contrast_completion=messages.Completion(text=" is"),
        aggregate=messages.AGGREGATE_SUM,
    ),
    "contrast_completion.token_ids.ids[0]": attribution(
        completion=messages.Completion(text=" is"),
        contrast_completion=messages.Completion(token_ids=ids(9999)),
        aggregate=messages.AGGREGATE_SUM,
    ),
}
INVALID_PROJECTIONS = {
    "neurons": projection(),
    "neurons[0].ffn.layer": projection(ffn(2, 0)),
    "neurons[0]": projection(attention(0, 0, 0), through=messages.Head(layer=0, head=0)),
    "through.head": projection(ffn(0, 0), through=messages.Head(layer=0, head=4)),
    "top_k": projection(ffn(0, 0), top_k=1001),
    "subkey": projection(ffn(0, 0), subkey=messages.SUBKEY_CHOICE_SUBVALUE),
}


def intervention(*changes, text=PROMPT, **fields):
    """One set of interventions that zero things."""
    together = messages.InterventionSet(interventions=[messages.Intervention(zero=True, **each) for each in changes])
    return messages.InterveneRequest(prompt=messages.Prompt(text=text), sets=[together], **fields)


HEAD = {"heads": [messages.Head(layer=0, head=0)]}
FIRST = "sets[0].interventions[0]"
INVALID_INTERVENTIONS = {
    "prompt.source": messages.InterveneRequest(sets=intervention(HEAD).sets),
    "prompt.text": intervention(HEAD, text=""),
    "prompt": intervention(HEAD, text="x" * 62, generate=4),
    "target.text": intervention(HEAD, target=choice(" Parisian")),
    "generate": intervention(HEAD, generate=5),
    "sets": messages.InterveneRequest(prompt=messages.Prompt(text=PROMPT)),
    "sets[0].interventions": intervention(),
    f"{FIRST}.neurons": intervention({}),
    f"{FIRST}.neurons[1].ffn.layer": intervention({"neurons": [ffn(1, 0), ffn(2, 0)]}),
    f"{FIRST}.neurons[0].ffn.index": intervention({"neurons": [ffn(0, 64)]}),
    f"{FIRST}.neurons[0].ffn.expert": intervention(
        {"neurons": [messages.Neuron(ffn=messages.FfnNeuron(layer=0, index=0, expert=0))]}
    ),
    f"{FIRST}.neurons[0].attention.index": intervention({"neurons": [attention(0, 0, 8)]}),
    "sets[0].interventions[1].heads[0].head": intervention(HEAD, {"heads": [messages.Head(layer=0, head=4)]}),
    f"{FIRST}.layers[0].layer": intervention(
        {"layers": [messages.LayerPart(layer=2, kind=messages.LAYER_PART_KIND_FFN)]}
    ),
    f"{FIRST}.layers[0].kind": intervention({"layers": [messages.LayerPart(layer=1)]}),
}


def check_invalid(server, call, request, field):
    error, status = failure(lambda: call(request, timeout=PATIENCE))
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]
    assert error.reason
    assert server.attribute().explanations, "the next request is served"


@pytest.mark.parametrize("field", INVALID_ATTRIBUTIONS)
def test_an_invalid_attribution_names_the_field(shared_server, field):
    check_invalid(shared_server, shared_server.stub.Attribute, INVALID_ATTRIBUTIONS[field], field)


@pytest.mark.parametrize("field", INVALID_PROJECTIONS)
def test_an_invalid_projection_names_the_field(shared_server, field):
    check_invalid(shared_server, shared_server.stub.ProjectNeuron, INVALID_PROJECTIONS[field], field)


@pytest.mark.parametrize("field", INVALID_INTERVENTIONS)
def test_an_invalid_intervention_names_the_field(shared_server, field):
    check_invalid(shared_server, shared_server.stub.Intervene, INVALID_INTERVENTIONS[field], field)


def test_too_many_interventions_are_refused_by_name(shared_server):
    """Three names in one set, counted together, and two sets, are the limits here."""
    both = {**HEAD, "neurons": [ffn(0, 0), ffn(0, 1)]}
    assert shared_server.stub.Intervene(intervention(both), timeout=PATIENCE).results
    for request, field, words in (
        (intervention(both, HEAD), "sets[0].interventions", "4 neurons, heads and layers is over the limit 3"),
        (intervention(*[HEAD] * 4), "sets[0].interventions", "4 interventions is over the limit 3"),
        (
            messages.InterveneRequest(prompt=messages.Prompt(text=PROMPT), sets=intervention(HEAD).sets[:] * 3),
            "sets",
            "3 sets is over the limit 2",
        ),
        (attribution(interventions=[messages.Intervention(zero=True, **HEAD)] * 4), "interventions", "the limit 3"),
    ):
        call = shared_server.stub.Intervene if hasattr(request, "sets") else shared_server.stub.Attribute
        check_invalid(shared_server, call, request, field)
        error, _ = failure(lambda call=call, request=request: call(request, timeout=PATIENCE))
        assert words in error.message


def test_whole_heads_and_layers_are_named_no_more_often_than_there_are_any(server):
    """Each stands for many neurons: of two layers and eight heads, a thousand times one costs what nothing bounds."""
    part = messages.LayerPart(layer=0, kind=messages.LAYER_PART_KIND_FFN)
    for each, count, words in (
        ({"layers": [part]}, 4, "5 layer parts, more than the model has, is over the limit 4; give at most 4"),
        (HEAD, 8, "9 heads, more than the model has, is over the limit 8; give at most 8"),
    ):
        assert server.stub.Intervene(intervention(*[each] * count), timeout=PATIENCE).results
        changes = [messages.Intervention(zero=True, **each)] * (count + 1)
        for request, call, field in (
            (intervention(*[each] * (count + 1)), server.stub.Intervene, "sets[0].interventions"),
            (attribution(interventions=changes), server.stub.Attribute, "interventions"),
        ):
            check_invalid(server, call, request, field)
            assert words in failure(lambda call=call, request=request: call(request, timeout=PATIENCE))[0].message


def test_the_interventions_of_all_sets_count_together(shared_server):
    request = intervention(HEAD, HEAD)
    request.sets.extend(request.sets[:])
    check_invalid(shared_server, shared_server.stub.Intervene, request, "sets")
    error, _ = failure(lambda: shared_server.stub.Intervene(request, timeout=PATIENCE))
    assert "4 interventions in all sets together is over the limit 3; give at most 3" in error.message


def test_sets_that_cannot_fit_one_batch_are_refused():
    """Two sequences of six tokens are in the limit, three are not."""
    with running_server(ThreadWorker(FakeEngine()), batch_tokens=12) as server:
        assert server.loaded.wait(PATIENCE)
        request = intervention(HEAD)
        assert server.stub.Intervene(request, timeout=PATIENCE).results
        request.sets.extend(request.sets[:])
        error, _ = failure(lambda: server.stub.Intervene(request, timeout=PATIENCE))
        assert "3 sequences of 6 tokens, 18 together, over the limit 12; send fewer sets" in error.message
        assert [violation.field for violation in error.violations] == ["sets"]


def test_tokens_that_would_be_generated_in_turn_for_many_sets_are_refused():
    """Sixteen sets generate together: four tokens of each of them are four, those of seventeen eight."""
    with running_server(ThreadWorker(FakeEngine()), maximum_explained_tokens=7) as server:
        assert server.loaded.wait(PATIENCE)
        request = intervention(HEAD, text="x", generate=4)
        request.sets.extend(request.sets[:] * 15)
        assert server.stub.Intervene(request, timeout=PATIENCE).results
        request.sets.extend(request.sets[:1])
        error, _ = failure(lambda: server.stub.Intervene(request, timeout=PATIENCE))
        assert "4 tokens for each of 17 sets are 8 one after another, over the limit 7; generate fewer" in error.message
        assert [violation.field for violation in error.violations] == ["generate"]


def test_sets_that_cannot_fit_in_memory_are_refused():
    """Of 1,000 bytes, 29 sequences of 35 tokens take 29 * 35."""
    with running_server(ThreadWorker(FakeEngine())) as server:
        assert server.loaded.wait(PATIENCE)
        request = intervention(HEAD, text="x" * 34)
        request.sets.extend(request.sets[:] * 27)
        error, _ = failure(lambda: server.stub.Intervene(request, timeout=PATIENCE))
        assert error.reason == "NEEDS_TOO_MUCH_MEMORY"
        assert [violation.field for violation in error.violations] == ["sets"]


def test_setting_attention_neurons_cannot_be_attributed(shared_server):
    set_head = messages.Intervention(set=1.0, **HEAD)
    request = messages.InterveneRequest(prompt=messages.Prompt(text=PROMPT))
    request.sets.add(interventions=[set_head])
    assert shared_server.stub.Intervene(request, timeout=PATIENCE).results
    check_invalid(
        shared_server, shared_server.stub.Attribute, attribution(interventions=[set_head]), "interventions[0].set"
    )


def test_another_models_interventions_are_not_found(shared_server):
    request = intervention(HEAD, model="other")
    assert (
        failure(lambda: shared_server.stub.Intervene(request, timeout=PATIENCE))[1].code() is grpc.StatusCode.NOT_FOUND
    )


def test_an_empty_text_has_no_tokens_to_show(shared_server):
    check_invalid(shared_server, shared_server.stub.Tokenize, messages.TokenizeRequest(), "text")


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(shared_server):
    request = messages.TokenizeRequest(text="x" * 1_000_000)
    check_invalid(shared_server, shared_server.stub.Tokenize, request, "text")


def test_a_target_of_several_tokens_is_refused_with_its_pieces(shared_server):
    error, _ = failure(lambda: shared_server.attribute(attribution(target=choice(" Parisian"))))
    assert error.message == 'target.text: " Parisian" is 2 tokens: " Paris", "ian"; name one of them or its id'
    assert error.reason == "NOT_ONE_TOKEN"


def test_a_neuron_out_of_range_is_refused_with_the_range(shared_server):
    error, _ = failure(lambda: shared_server.attribute(attribution(neurons=[ffn(2, 0)])))
    assert "valid are 0 to 1" in error.message


@pytest.mark.parametrize(
    ("name", "request_type"),
    [
        ("Attribute", messages.AttributeRequest),
        ("ProjectNeuron", messages.ProjectNeuronRequest),
        ("Tokenize", messages.TokenizeRequest),
        ("GetModel", messages.GetModelRequest),
    ],
)
def test_another_models_name_is_not_found_and_the_served_one_named(shared_server, name, request_type):
    request = request_type(model="gpt-5")
    if name == "Attribute":
        request.prompt.text = PROMPT
    if name == "ProjectNeuron":
        request.neurons.append(ffn(0, 0))
    if name == "Tokenize":
        request.text = PROMPT
    error, status = failure(lambda: getattr(shared_server.stub, name)(request, timeout=PATIENCE))
    assert status.code() is grpc.StatusCode.NOT_FOUND
    assert error.reason == "MODEL_NOT_FOUND"
    assert "'fake'" in error.message


def test_a_part_the_model_cannot_give_is_a_failed_precondition(shared_server):
    error, status = failure(lambda: shared_server.attribute(attribution(parts=[messages.PART_QUERY_FFN_NEURONS])))
    assert status.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "UNSUPPORTED_BY_MODEL"
    assert "query-ffn-neurons" in error.message


def test_one_failed_task_fails_alone(shared_server):
    error, status = failure(lambda: shared_server.attribute(attribution(" refuse")))
    assert status.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.message == "this model cannot"


def test_internal_carries_a_request_id_and_nothing_else(shared_server, caplog):
    error, status = failure(
        lambda: shared_server.attribute(attribution(" crash"), metadata=[("x-request-id", "id-17")])
    )
    assert status.code() is grpc.StatusCode.INTERNAL
    assert (error.reason, error.request_id, error.violations, error.retry_after) == ("INTERNAL", "id-17", (), None)
    assert "secret" not in str(status.trailing_metadata()) + status.details()
    assert "a secret of the engine" in caplog.text
    assert "id-17" in caplog.text
    assert dict(status.trailing_metadata())["x-request-id"] == "id-17"
    assert shared_server.attribute().explanations, "the worker lives on"


def test_calls_without_an_implementation_say_so(shared_server):
    call = shared_server.channel.unary_unary("/neuron_attribution.v1.NeuronAttributionService/Improvise")
    error, status = failure(lambda: call(b"", timeout=PATIENCE))
    assert status.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.reason == "UNIMPLEMENTED"


def test_bytes_that_are_no_message_are_an_invalid_argument(shared_server):
    call = shared_server.channel.unary_unary("/neuron_attribution.v1.NeuronAttributionService/Attribute")
    error, status = failure(lambda: call(b"\xff\xff", timeout=PATIENCE))
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "MALFORMED_MESSAGE"


def test_every_error_carries_error_info_of_one_domain(shared_server):
    _, status = failure(lambda: shared_server.attribute(attribution("")))
    info = ErrorInfo()
    details = Status.FromString(dict(status.trailing_metadata())["grpc-status-details-bin"]).details
    assert details[0].Unpack(info)
    assert info.domain == "neuron_attribution"


def test_an_answer_over_the_message_limit_is_refused_by_name():
    with running_server(ThreadWorker(FakeEngine()), maximum_message_bytes=1024) as server:
        assert server.loaded.wait(PATIENCE)
        request = messages.TokenizeRequest(text="x" * 200)
        error, status = failure(lambda: server.stub.Tokenize(request, timeout=PATIENCE))
        assert status.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "RESPONSE_TOO_LARGE"
        assert dict(status.trailing_metadata())["grpc-retry-pushback-ms"] == "-1", "trying again cannot help"


def test_a_request_over_the_message_limit_is_refused_by_grpc_itself():
    with running_server(ThreadWorker(FakeEngine()), maximum_request_bytes=1024) as server:
        assert server.loaded.wait(PATIENCE)
        error, status = failure(lambda: server.attribute(attribution("x" * 2000)))
        assert status.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "MESSAGE_TOO_LARGE"


def test_a_request_that_cannot_fit_in_memory_is_refused_before_it_is_queued(shared_server):
    """Of this model's memory for a batch, 1,000 bytes, explaining 4 of 35 tokens takes 35 + 4 * 35 * 8."""
    error, call = failure(lambda: shared_server.attribute(attribution("x" * 30, generate=4)))
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "NEEDS_TOO_MUCH_MEMORY"
    assert [violation.field for violation in error.violations] == ["prompt"]
    assert shared_server.attribute().explanations


class Projecting(FakeEngine):
    """Of this model's memory for a batch, 1,000 bytes, a projected token takes one."""

    facts = replace(FACTS, memory=MemoryCost(available=1000, per_projected_token=1))


def test_an_answer_that_cannot_fit_in_memory_is_refused_before_it_is_queued():
    neurons = [messages.Neuron(ffn=messages.FfnNeuron(layer=0, index=index)) for index in range(40)]
    with running_server(ThreadWorker(Projecting())) as server:
        assert server.loaded.wait(PATIENCE)
        request = messages.ProjectNeuronRequest(neurons=neurons, top_k=12)
        assert len(server.stub.ProjectNeuron(request, timeout=PATIENCE).projections) == 40
        request.top_k = 13
        error, call = failure(lambda: server.stub.ProjectNeuron(request, timeout=PATIENCE))
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (error.reason, error.violations[0].field) == ("NEEDS_TOO_MUCH_MEMORY", "neurons")
        error, _ = failure(lambda: server.attribute(attribution(projection_top_k=30)))
        assert (error.reason, error.violations[0].field) == ("NEEDS_TOO_MUCH_MEMORY", "prompt")
        assert server.attribute(attribution(projection_top_k=20)).explanations


def test_the_tokens_of_an_answer_are_counted():
    options = AttributeOptions(direction=Direction.BOTH, top_k=7, projection_top_k=5, neurons=(FfnNeuron(0, 0),))
    task = AttributeTask(token_ids=(1, 2, 3), explained=(ExplainedToken(1), ExplainedToken(2)), options=options)
    assert task.cost(100).projected_tokens == 2 * 2 * 5 * (2 * 3 * 7 + 1)
    positions = replace(task, options=replace(options, position_projection_top_k=4, head_top_k=6))
    heads, places, vectors = 2 * 6 * 2, 3, 3
    assert positions.cost(100).projected_tokens == task.cost(100).projected_tokens + heads * places * vectors * 2 * 4
    assert positions.cost(4).projected_tokens == task.cost(4).projected_tokens + 2 * 4 * 2 * places * vectors * 2 * 4


def test_an_exhaustive_request_that_would_outlast_its_batch_is_refused_before_it_is_queued():
    """One explained token after 6: 2 layers x (64 + 4 x 8 x 6) neurons x 512 tokens."""
    scores = 2 * (64 + 4 * 8 * 6) * 512
    with running_server(ThreadWorker(FakeEngine()), maximum_exhaustive_scores=scores) as server:
        assert server.loaded.wait(PATIENCE)
        assert server.attribute(attribution(exhaustive=True)).explanations
        error, call = failure(lambda: server.attribute(attribution(PROMPT + " Paris", exhaustive=True)))
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.reason == "TOO_EXHAUSTIVE"
        assert [violation.field for violation in error.violations] == ["exhaustive"]
        assert server.attribute(attribution(PROMPT + " Paris")).explanations
