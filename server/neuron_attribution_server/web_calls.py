"""One call as JSON over HTTP: canonical protobuf JSON in and out, errors as google.rpc.Status."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from aiohttp import web
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from neuron_attribution.channel import DEFAULT_TIMEOUT
from neuron_attribution.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NeuronAttributionError,
    UnimplementedError,
)
from neuron_attribution.status import from_rpc_error, status_code, to_status
from neuron_attribution.v1 import neuron_attribution_pb2

from neuron_attribution_server.authentication import tenant_of
from neuron_attribution_server.calls import REQUEST_ID_KEY
from neuron_attribution_server.reloading import Reloaded
from neuron_attribution_server.tokens import TokenTable

Converted = TypeVar("Converted")

SERVICE = neuron_attribution_pb2.DESCRIPTOR.services_by_name["NeuronAttributionService"]
TIMEOUT_HEADER = "Grpc-Timeout"
_FORWARDED = ("authorization", REQUEST_ID_KEY, "traceparent", "tracestate")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_TIMEOUT = 86_400.0
_CONVERSIONS = 2
_ENCODED = "ENCODED_MESSAGE"

HTTP_STATUSES: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
}
"""As google/rpc/code.proto maps them."""


@dataclass(frozen=True, slots=True)
class _Method:
    request: type[Message]
    call: grpc.aio.UnaryUnaryMultiCallable[Any, Any]


class JsonCalls:
    """Answers /v1/METHOD for every call of the service that is no stream, its name in snake_case."""

    def __init__(self, channel: grpc.aio.Channel, tokens: Reloaded[TokenTable] | None) -> None:
        self._tokens = tokens
        self._threads = ThreadPoolExecutor(_CONVERSIONS, "web")
        unary = [method for method in SERVICE.methods if not (method.client_streaming or method.server_streaming)]
        self._methods = {_snake_case(method.name): _method(method, channel) for method in unary}

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one call. A caller who goes away cancels it."""
        try:
            metadata = _metadata(request)
            if self._tokens is not None:
                tenant_of(self._tokens, metadata)  # before the body costs anything
            method = self._method(request)
            message = await self._converted(_parsed, await _body(request), method.request)
            call = method.call(message, timeout=_timeout(request), metadata=metadata)
            response = await call
        except grpc.aio.AioRpcError as error:
            return failure(from_rpc_error(error, "the server"), _identity(error.trailing_metadata()))
        except NeuronAttributionError as error:
            return failure(error)
        identity = _identity(await call.trailing_metadata())
        return _json(200, await self._converted(_written, response), identity)

    async def _converted(self, conversion: Callable[..., Converted], *given: object) -> Converted:
        """Convert in one of few threads: large messages take Python's time, which gRPC's callers need too."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, conversion, *given)

    def _method(self, request: web.Request) -> _Method:
        method = self._methods.get(request.match_info["method"])
        if method is None:
            raise UnimplementedError(f"there is no such call; there are /v1/{', /v1/'.join(self._methods)}")
        return method


def _method(method: MethodDescriptor, channel: grpc.aio.Channel) -> _Method:
    request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    call = channel.unary_unary(
        f"/{SERVICE.full_name}/{method.name}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return _Method(request, call)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


async def _body(request: web.Request) -> bytes:
    """The request's body. Only JSON is taken: a form of another site cannot send it."""
    if request.content_type != "application/json":
        raise InvalidArgumentError("the request is not JSON: send the header 'Content-Type: application/json'")
    if "Content-Encoding" in request.headers:
        raise InvalidArgumentError("the request has a Content-Encoding: send it uncompressed", reason=_ENCODED)
    try:
        async with asyncio.timeout(_timeout(request)):
            return await request.read()
    except TimeoutError:
        raise DeadlineExceededError("the request's body did not come in the time allowed") from None
    except web.RequestPayloadError:
        raise InvalidArgumentError(
            "the request's body ends early or is cut wrongly", reason="MALFORMED_MESSAGE"
        ) from None


def _parsed(body: bytes, kind: type[Message]) -> Message:
    try:
        return json_format.Parse(body, kind())
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"the request is not the protobuf JSON of {kind.DESCRIPTOR.name}: {error}", reason="MALFORMED_MESSAGE"
        ) from None


def _written(message: Message) -> str:
    return json_format.MessageToJson(
        message, indent=None, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _timeout(request: web.Request) -> float:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return DEFAULT_TIMEOUT
    match = re.fullmatch(r"([0-9]{1,8})([HMSmun])", text, re.ASCII)
    if match is None:
        raise InvalidArgumentError(f"{TIMEOUT_HEADER}: write a number and a unit of H, M, S, m, u, n, such as 30S")
    return min(int(match[1]) * _UNITS[match[2]], _LONGEST_TIMEOUT)


def _metadata(request: web.Request) -> tuple[tuple[str, str], ...]:
    given = ((name, request.headers.get(name, "")) for name in _FORWARDED)
    return tuple((name, value) for name, value in given if value and value.isascii() and value.isprintable())


def _identity(metadata: Any) -> str:  # noqa: ANN401 - gRPC's metadata, pairs
    return str(dict(metadata or ()).get(REQUEST_ID_KEY, ""))


def failure(error: NeuronAttributionError, identity: str = "") -> web.Response:
    """An error as it is answered."""
    status = 415 if error.reason == _ENCODED else HTTP_STATUSES[status_code(error)]
    response = _json(status, json_format.MessageToJson(to_status(error)), identity)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    if response.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _json(status: int, text: str, identity: str) -> web.Response:
    headers = {"Cache-Control": "no-store"} | ({"X-Request-Id": identity} if identity else {})
    return web.Response(status=status, text=text, content_type="application/json", headers=headers)
