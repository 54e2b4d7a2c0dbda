"""The one table between errors and gRPC statuses, and their details: google.rpc ErrorInfo, BadRequest, RetryInfo."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from neuron_attribution import errors
from neuron_attribution.convert.values import duration, seconds
from neuron_attribution.errors import FieldViolation, NeuronAttributionError
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

DOMAIN = "neuron_attribution"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
_LONGEST_MESSAGE = 1024
"""Bytes of UTF-8."""

STATUS_CODES: dict[type[NeuronAttributionError], grpc.StatusCode] = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CancelledError: grpc.StatusCode.CANCELLED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.AbortedError: grpc.StatusCode.ABORTED,
    errors.UnimplementedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

# Codes the service never sends by itself: gRPC, a proxy or a gateway may.
FOREIGN_CODES: dict[grpc.StatusCode, type[NeuronAttributionError]] = {
    grpc.StatusCode.UNKNOWN: errors.InternalError,
    grpc.StatusCode.DATA_LOSS: errors.InternalError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgumentError,
    grpc.StatusCode.ALREADY_EXISTS: errors.FailedPreconditionError,
}

ERROR_CLASSES = {code: kind for kind, code in STATUS_CODES.items()} | FOREIGN_CODES

# What a status without our details means: it comes from gRPC itself, on this side of the wire or on the other.
BARE_STATUSES: dict[grpc.StatusCode, tuple[str, str]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("MESSAGE_TOO_LARGE", "the message is too large: {details}"),
    grpc.StatusCode.UNAVAILABLE: (
        "UNREACHABLE",
        "no server reachable at {address}; start one with: neuron-attribution serve --model demo ({details})",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "DEADLINE_EXCEEDED",
        "the time allowed ran out before {address} answered; allow more with the timeout",
    ),
}

# What gRPC says where nothing was reached, if it can be told more plainly: what to look for, reason and message.
UNREACHABLE_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "CERTIFICATE_VERIFY_FAILED: ",
        "CERTIFICATE_REFUSED",
        "the certificate of {address} is refused: {details}; it must be valid, and signed by an authority this client "
        "trusts (root_certificates; on the command line --tls-authority)",
    ),
    (
        "WRONG_VERSION_NUMBER: ",
        "NO_TLS",
        "{address} does not speak TLS; leave the TLS settings out, or use the address that does",
    ),
    (
        "Socket closed",
        "CONNECTION_CLOSED",
        "{address} closed the connection; if it uses TLS it takes no plain text (tls, --tls), and it may want a client "
        "certificate that is valid and that it knows (certificate and key, --tls-certificate and --tls-key)",
    ),
)


def status_code(error: NeuronAttributionError) -> grpc.StatusCode:
    """The status code of an error. An error of no class of its own is a bug: INTERNAL."""
    codes = (STATUS_CODES[kind] for kind in type(error).__mro__ if kind in STATUS_CODES)
    return next(codes, grpc.StatusCode.INTERNAL)


def public_message(error: NeuronAttributionError) -> str:
    """What a caller may read. Of an internal error only the request id leaves the server."""
    if status_code(error) is not grpc.StatusCode.INTERNAL:
        return _shortened(error.message)
    where = f"; the server's log has it as request {error.request_id}" if error.request_id else ""
    return f"internal error{where}"


def to_status(error: NeuronAttributionError) -> Status:
    """The google.rpc.Status of an error."""
    status = Status(code=status_code(error).value[0], message=public_message(error))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def trailing_metadata(error: NeuronAttributionError) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata that carries an error's details, and the pushback a retrying client obeys."""
    details: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, to_status(error).SerializeToString()),)
    if error.retry_after is None:
        return details
    return (*details, (PUSHBACK_KEY, str(round(error.retry_after * 1000))))


def from_status(status: Status) -> NeuronAttributionError:
    """The error of a google.rpc.Status."""
    info, bad_request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        any(detail.Unpack(message) for message in (info, bad_request, retry))
    kind = ERROR_CLASSES.get(_code(status.code), errors.InternalError)
    return kind(
        status.message,
        reason=info.reason or None,
        violations=tuple(FieldViolation(item.field, item.description) for item in bad_request.field_violations),
        retry_after=seconds(retry.retry_delay) if retry.HasField("retry_delay") else None,
        request_id=info.metadata.get("request_id"),
    )


def to_item_error(error: NeuronAttributionError) -> messages.ItemError:
    """The error of one item of a stream, with the details its call alone would have failed with."""
    status = to_status(error)
    return messages.ItemError(code=status.code, reason=error.reason, message=status.message, details=status.details)


def from_item_error(item: messages.ItemError) -> NeuronAttributionError:
    """The error of one item of a stream."""
    return from_status(Status(code=item.code, message=item.message, details=item.details))


def from_rpc_error(error: grpc.RpcError, address: str) -> NeuronAttributionError:
    """The error of a failed call to `address`, synchronous or asynchronous."""
    call: Any = error  # The stubs give RpcError no methods; every error a call raises is a grpc.Call as well.
    status = _attached_status(call.trailing_metadata())
    if status is not None:
        return from_status(status)
    return _bare(call.code(), call.details() or "", address)


def _shortened(text: str) -> str:
    """A message that may quote the request, with its middle left out where it is long: trailers are limited to 8 KiB.

    A trailer has the message percent-encoded and, in the details, twice more.
    """
    data = text.encode(errors="replace")
    if len(data) <= _LONGEST_MESSAGE:
        return text
    half = _LONGEST_MESSAGE // 2
    return f"{data[:half].decode(errors='ignore')} ... {data[-half:].decode(errors='ignore')}"


def _details(error: NeuronAttributionError) -> list[Message]:
    metadata = {"request_id": error.request_id} if error.request_id else {}
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.violations:
        violations = [
            BadRequest.FieldViolation(field=v.field, description=_shortened(v.description)) for v in error.violations
        ]
        details.append(BadRequest(field_violations=violations))
    if error.retry_after is not None:
        details.append(RetryInfo(retry_delay=duration(error.retry_after)))
    return details


def _attached_status(metadata: Iterable[tuple[str, bytes]] | None) -> Status | None:
    for key, value in metadata or ():
        if key == DETAILS_KEY:
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def _bare(code: grpc.StatusCode, details: str, address: str) -> NeuronAttributionError:
    reason, message = BARE_STATUSES.get(code, (None, "{details}"))
    cause = details.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
    if code is grpc.StatusCode.UNAVAILABLE:
        reason, message, cause = _plainer(reason, message, cause)
    return ERROR_CLASSES[code](message.format(details=cause or code.value[1], address=address), reason=reason)


def _plainer(reason: str | None, message: str, cause: str) -> tuple[str | None, str, str]:
    for words, known_reason, known_message in UNREACHABLE_CAUSES:
        if words in cause:
            return known_reason, known_message, cause.rpartition(words)[2].removesuffix(": OK")
    return reason, message, cause


def _code(number: int) -> grpc.StatusCode:
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)
