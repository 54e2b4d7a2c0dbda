"""Both clients against a service on a real port: one suite, two transports."""

import asyncio
import shutil
import socket
import subprocess
import time
from dataclasses import replace

import grpc
import pytest
from client.fake_service import ATTRIBUTION, INFO, INTERVENED, PROJECTIONS, TOKENIZATION, FakeService, serving
from client.strategies import assert_same
from neuron_attribution import (
    AsyncClient,
    AttentionNeuron,
    AttributeOptions,
    AttributeRequest,
    Client,
    DeadlineExceededError,
    Direction,
    FfnNeuron,
    Head,
    InternalError,
    InterveneRequest,
    Intervention,
    InvalidArgumentError,
    LayerPart,
    Part,
    ProjectNeuronRequest,
    ResourceExhaustedError,
    Scale,
    ScoringMethod,
    SetTo,
    Side,
    TokenizeRequest,
    UnavailableError,
    convert,
)
from neuron_attribution.transport import status
from neuron_attribution.transport.channel import Connection


def call_directly(settings, method, *arguments, **options):
    with Client(**settings) as client:
        return getattr(client, method)(*arguments, **options)


def call_asynchronously(settings, method, *arguments, **options):
    async def run():
        async with AsyncClient(**settings) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(run())


@pytest.fixture(params=[call_directly, call_asynchronously], ids=["Client", "AsyncClient"])
def call(request):
    return request.param


def test_attribute(call, service, address) -> None:
    result = call({"address": address}, "attribute", "The sky is")
    assert_same(result, ATTRIBUTION)
    assert service.requests == [AttributeRequest(prompt="The sky is")]


def test_intervene(call, service, address) -> None:
    """Lists for tuples and texts for neurons and heads will do."""
    changes = [Intervention(neurons=["1.2"], heads=[Head(0, 1), "1.1"])]
    changes += [Intervention(Scale(2), layers=[LayerPart(1, "ffn")])]
    result = call({"address": address}, "intervene", [1, 2], [changes], target=" blue", generate=2)
    assert_same(result, INTERVENED)
    first = Intervention(neurons=(FfnNeuron(1, 2),), heads=(Head(0, 1), Head(1, 1)))
    second = Intervention(Scale(2.0), layers=(LayerPart(1, "ffn"),))
    assert service.requests == [InterveneRequest(prompt=(1, 2), sets=((first, second),), target=" blue", generate=2)]


def test_one_set_of_interventions_is_one_line(call, service, address) -> None:
    call(
        {"address": address},
        "intervene",
        "The sky is",
        zero=["1.2", "0.h1", LayerPart(1, "ffn")],
        scale={"1.3": 2, FfnNeuron(0, 5): 2},
        set={"0.1.2": -1.0},
        explained_position_only=True,
        generate=1,
    )
    changes = (
        Intervention(neurons=(FfnNeuron(1, 2),), heads=(Head(0, 1),), layers=(LayerPart(1, "ffn"),)),
        Intervention(Scale(2.0), neurons=(FfnNeuron(1, 3), FfnNeuron(0, 5))),
        Intervention(SetTo(-1.0), neurons=(AttentionNeuron(0, 1, 2),)),
    )
    only = tuple(replace(each, explained_position_only=True) for each in changes)
    assert service.requests == [InterveneRequest(prompt="The sky is", sets=(only,), generate=1)]
    call({"address": address}, "intervene", "The sky is", zero="1.2")
    assert service.requests[1].sets == ((Intervention(neurons=(FfnNeuron(1, 2),)),),)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([[["24.1005"]]], {}, r"sets\[0\].*'24.1005' is no Intervention; .*zero=\['24.1005', '23.h4'\]"),
        ([["24.1005"]], {}, "'24.1005' is no sequence of interventions; .*zero="),
        (["24.1005"], {}, "'24.1005' is no list of sets; .*zero="),
        ([[[Intervention()]]], {"zero": "1.2"}, "sets: and zero exclude each other"),
        ([], {"zero": ["x.y"]}, "'x.y' names nothing that can be changed: write LAYER.INDEX"),
        ([], {"zero": [7]}, "7 names nothing that can be changed"),
        ([], {"scale": ["1.2"]}, r"scale: \['1.2'\] gives no name its number"),
    ],
)
def test_what_changes_nothing_is_answered_with_the_line_to_write(call, arguments, options, message) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        call({"address": "localhost:1"}, "intervene", "The sky is", *arguments, **options)


def test_interventions_that_are_no_sets_are_refused_before_they_are_sent(call, service, address) -> None:
    for sets, field in (
        ([Intervention(heads=(Head(0, 0),))], "sets[0].interventions"),
        ([[Intervention(heads=("x",))]], "sets[0].interventions[0].heads[0]"),
        ([[Intervention(neurons=(FfnNeuron(-1, 0),))]], "sets[0].interventions[0].neurons[0].layer"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            call({"address": address}, "intervene", "The sky is", sets)
        assert caught.value.violations[0].field == field
    assert service.requests == []


def test_attribute_takes_every_option(call, service, address) -> None:
    call(
        {"address": address},
        "attribute",
        [1, 2],
        completion=[3],
        contrast=" red",
        model="tiny",
        parts=["heads", Part.LAYERS],
        top_k=3,
        direction="both",
        scoring_method=ScoringMethod.NORM,
        neurons=["1.2", FfnNeuron(0, 0)],
        exhaustive=True,
        interventions=[Intervention(heads=["1.0"])],
    )
    options = AttributeOptions(
        parts=frozenset({Part.HEADS, Part.LAYERS}),
        top_k=3,
        direction=Direction.BOTH,
        scoring_method=ScoringMethod.NORM,
        neurons=(FfnNeuron(1, 2), FfnNeuron(0, 0)),
        exhaustive=True,
        interventions=(Intervention(heads=(Head(1, 0),)),),
    )
    expected = AttributeRequest(prompt=(1, 2), completion=(3,), contrast=" red", options=options, model="tiny")
    assert service.requests == [expected]


@pytest.mark.parametrize("neurons", [FfnNeuron(1, 17), "1.17", [FfnNeuron(1, 17)]])
def test_project_neuron(call, service, address, neurons) -> None:
    settings = {"address": address}
    assert call(settings, "project_neuron", neurons, side="subkey", through="0.1", top_k=2) == PROJECTIONS
    expected = ProjectNeuronRequest(neurons=(FfnNeuron(1, 17),), side=Side.SUBKEY, through=Head(0, 1), top_k=2)
    assert service.requests == [expected]


def test_tokenize_and_get_model(call, service, address) -> None:
    assert call({"address": address}, "tokenize", "The sky", add_special_tokens=False) == TOKENIZATION
    assert call({"address": address}, "get_model", model="tiny") == INFO
    assert service.requests == [TokenizeRequest(text="The sky", add_special_tokens=False), "tiny"]


def test_the_token_is_sent_as_a_bearer_token(call, service, address) -> None:
    call({"address": address, "token": "secret"}, "get_model")
    call({"address": address}, "get_model")
    assert service.metadata[0]["authorization"] == "Bearer secret"
    assert "authorization" not in service.metadata[1]


def test_errors_arrive_with_their_details(call, service, address) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        call({"address": address}, "attribute", "")
    assert [violation.field for violation in caught.value.violations] == ["prompt.text"]
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    service.errors = [InternalError("secret", request_id="r1")]
    with pytest.raises(InternalError, match=r"internal error; .* request r1") as caught:
        call({"address": address}, "get_model")
    assert caught.value.request_id == "r1"


def test_an_unavailable_service_is_asked_again(call, service, address) -> None:
    service.errors = [UnavailableError("draining")]
    assert call({"address": address}, "get_model") == INFO
    assert len(service.metadata) == 2


@pytest.mark.patient
def test_a_restart_of_some_seconds_is_ridden_out(service, address) -> None:
    """Five attempts: the last one is made some seconds after the first."""
    service.errors = [UnavailableError("the worker is restarting") for _ in range(4)]
    begin = time.monotonic()
    assert call_directly({"address": address}, "get_model") == INFO
    assert time.monotonic() - begin > 4


def test_a_full_queue_is_asked_again_when_it_says(call, service, address) -> None:
    service.errors = [ResourceExhaustedError("full", retry_after=0.7)]
    begin = time.monotonic()
    assert call({"address": address}, "get_model") == INFO
    assert time.monotonic() - begin >= 0.7


def test_a_queue_that_stays_full_is_an_error(call, service, address) -> None:
    service.errors = [ResourceExhaustedError("full", retry_after=0.01) for _ in range(9)]
    with pytest.raises(ResourceExhaustedError) as caught:
        call({"address": address}, "get_model")
    assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 0.01)


@pytest.mark.parametrize(("default", "own"), [(0.2, None), (60.0, 0.2)])
def test_deadlines(call, service, address, default, own) -> None:
    service.delay = 1.0
    with pytest.raises(DeadlineExceededError, match="the time allowed ran out"):
        call({"address": address, "timeout": default}, "get_model", timeout=own)


def test_a_message_that_is_too_large_has_a_reason_of_its_own(call, service) -> None:
    options = [("grpc.max_receive_message_length", 1000)]
    with (
        serving(service, options=options) as address,
        pytest.raises(ResourceExhaustedError, match="too large") as caught,
    ):
        call({"address": address}, "tokenize", "a" * 500_000)
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


def test_no_server(call) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=f"no server reachable at {address}; start one with") as caught:
            call({"address": address}, "get_model", timeout=10)
    assert caught.value.reason == "UNREACHABLE"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["attribute", "a"], {"direction": "up"}, "direction: 'up' is unknown; give one of increase, decrease, both"),
        (["attribute", "a"], {"parts": ["tails"]}, "parts: 'tails' is unknown"),
        (["attribute", "a"], {"target": "b", "generate": 2}, "target and generate exclude each other"),
        (["attribute", "a"], {"neurons": ["1.2", "x"]}, r"neurons\[1\]: 'x' is not a neuron"),
        (["project_neuron", "1.2"], {"through": "1"}, "through: '1' is not a head"),
        (["attribute", 5], {}, "prompt: 5 is neither a text nor token ids"),
        (["attribute", ["a", "b"]], {}, r"prompt: \['a', 'b'\] is neither a text nor token ids"),
        (["attribute", "a"], {"completion": 5}, "completion: 5 is neither"),
    ],
)
def test_arguments_are_checked_before_the_call(call, arguments, options, message) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        call({"address": "localhost:1"}, *arguments, **options)


def test_an_unknown_option_is_an_error(call, address) -> None:
    with pytest.raises(TypeError, match="there is no argument 'topk'; did you mean 'top_k'"):
        call({"address": address}, "attribute", "a", topk=3)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("localhost:50051", "dns:///localhost:50051"),
        ("[::1]:50051", "dns:///[::1]:50051"),
        ("unix:/run/service.sock", "unix:/run/service.sock"),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
    ],
)
def test_addresses_go_through_dns_unless_they_say_otherwise(address, target) -> None:
    assert Connection(address=address).target == target


def test_a_connection_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="go together"):
        Connection(certificate=b"x")
    with pytest.raises(ValueError, match="visible ASCII"):
        Connection(token="two words\n")
    assert "secret" not in repr(Connection(token="secret"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate of localhost and its key: the server's, the client's and the authority's at once."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_mutual_tls(call, service, certificate) -> None:
    public, private = (path.read_bytes() for path in certificate)
    credentials = grpc.ssl_server_credentials([(private, public)], public, require_client_auth=True)
    with serving(service, credentials) as address:
        settings = {"address": address, "root_certificates": certificate[0]}
        assert call({**settings, "certificate": public, "key": certificate[1]}, "get_model") == INFO
        with pytest.raises(UnavailableError):
            call({**settings, "timeout": 5}, "get_model")


class SmallService(FakeService):
    """Has 20 heads, and memory for so many of them in one request; it says that before or after it tried."""

    room = 4
    error = InvalidArgumentError.of("sets", "takes 9 MiB", reason="NEEDS_TOO_MUCH_MEMORY")

    def GetModel(self, request, context):
        sizes = replace(INFO.sizes, layers=5, heads=4)
        return convert.model_info_to_proto(replace(INFO, sizes=sizes))

    def Intervene(self, request, context):
        if len(request.sets) > self.room:
            do_not_retry = (status.PUSHBACK_KEY, "-1")
            context.set_trailing_metadata((*status.trailing_metadata(self.error), do_not_retry))
            context.abort(status.status_code(self.error), status.public_message(self.error))
        return super().Intervene(request, context)


@pytest.mark.parametrize("error", [SmallService.error, ResourceExhaustedError("too much", reason="OUT_OF_MEMORY")])
def test_heads_are_zeroed_fewer_at_a_time_where_memory_is_small(call, error) -> None:
    service = SmallService()
    service.error = error
    with serving(service) as address:
        assert call({"address": address}, "head_effects", "The sky is").kl_divergences.shape == (5, 4)
        requests = [request for request in service.requests if isinstance(request, InterveneRequest)]
        assert max(len(request.sets) for request in requests) == service.room
        zeroed = {head for request in requests for each in request.sets for head in each[0].heads}
        assert zeroed == {Head(layer, head) for layer in range(5) for head in range(4)}
        service.room = 0
        with pytest.raises(type(error)):
            call({"address": address}, "head_effects", "The sky is")
