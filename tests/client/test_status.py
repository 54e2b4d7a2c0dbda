"""Errors and gRPC statuses: the table is complete, and nothing but what callers may know crosses the wire."""

import pickle

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from neuron_attribution import errors
from neuron_attribution.errors import FieldViolation, NeuronAttributionError
from neuron_attribution.transport import status

CLASSES = NeuronAttributionError.__subclasses__()


class FailedCall(grpc.RpcError):
    """A failed call as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: object = ()) -> None:
        self.values = (code, details, metadata)

    def code(self) -> grpc.StatusCode:
        return self.values[0]

    def details(self) -> str:
        return self.values[1]

    def trailing_metadata(self) -> object:
        return self.values[2]


def over_the_wire(error: NeuronAttributionError) -> NeuronAttributionError:
    """The error as a client gets it."""
    call = FailedCall(status.status_code(error), "", status.trailing_metadata(error))
    return status.from_rpc_error(call, "localhost:1")


def test_every_error_class_has_a_code_of_its_own() -> None:
    assert set(status.STATUS_CODES) == set(CLASSES)
    assert len(set(status.STATUS_CODES.values())) == len(CLASSES)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_becomes_an_error(code: grpc.StatusCode) -> None:
    assert code in status.ERROR_CLASSES
    error = status.from_rpc_error(FailedCall(code, "why"), "localhost:1")
    assert isinstance(error, NeuronAttributionError)
    assert str(error)


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_keep_class_reason_and_details(kind: type[NeuronAttributionError]) -> None:
    sent = kind(
        "what and what to do",
        reason="A_REASON",
        violations=(FieldViolation("prompt.text", "is empty"),),
        retry_after=1.5,
        request_id="r1",
    )
    received = over_the_wire(sent)
    assert type(received) is kind
    assert received.reason == "A_REASON"
    assert received.violations == sent.violations
    assert received.retry_after == 1.5
    assert received.request_id == "r1"


@pytest.mark.parametrize("kind", CLASSES)
def test_every_status_carries_a_reason_in_our_domain(kind: type[NeuronAttributionError]) -> None:
    info = ErrorInfo()
    assert status.to_status(kind("x")).details[0].Unpack(info)
    assert (info.domain, info.reason) == ("neuron_attribution", kind.default_reason)


@pytest.mark.parametrize("kind", [errors.InternalError, NeuronAttributionError])
def test_an_internal_error_tells_its_request_id_and_nothing_else(kind: type[NeuronAttributionError]) -> None:
    received = over_the_wire(kind("password in /etc/secret", request_id="r1"))
    assert type(received) is errors.InternalError
    assert str(received) == "internal error; the server's log has it as request r1"
    assert b"secret" not in status.to_status(kind("password in /etc/secret")).SerializeToString()


def test_pushback_is_in_milliseconds() -> None:
    metadata = dict(status.trailing_metadata(errors.ResourceExhaustedError("full", retry_after=0.25)))
    assert metadata[status.PUSHBACK_KEY] == "250"
    assert status.PUSHBACK_KEY not in dict(status.trailing_metadata(errors.ResourceExhaustedError("full")))


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", "too large: received 5, limit 4"),
        (grpc.StatusCode.UNAVAILABLE, "UNREACHABLE", "no server reachable at localhost:1; start one with:"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "before localhost:1 answered"),
        (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", "received 5"),
    ],
)
def test_statuses_of_grpc_itself_are_explained(code: grpc.StatusCode, reason: str, message: str) -> None:
    error = status.from_rpc_error(FailedCall(code, "received 5, limit 4"), "localhost:1")
    assert error.reason == reason
    assert message in str(error)


def test_details_that_cannot_be_read_are_as_good_as_none() -> None:
    call = FailedCall(grpc.StatusCode.NOT_FOUND, "gone", [("other", "x"), (status.DETAILS_KEY, b"\xff\xff")])
    error = status.from_rpc_error(call, "localhost:1")
    assert isinstance(error, errors.NotFoundError)
    assert str(error) == "gone"


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_survive_pickling(kind: type[NeuronAttributionError]) -> None:
    """The server's worker process answers with them."""
    sent = kind("x", reason="R", violations=(FieldViolation("a", "b"),), retry_after=1.0, request_id="r")
    received = pickle.loads(pickle.dumps(sent))
    assert type(received) is kind
    assert vars(received) == vars(sent)
    assert str(received) == "x"
