"""One call as JSON over HTTP, from its headers to its answer, within the time that it allows."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from aiohttp import web
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from neuron_attribution.errors import DeadlineExceededError, NeuronAttributionError, UnimplementedError
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2

from neuron_attribution_server.front_end.calls.calls import REQUEST_ID_KEY
from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS
from neuron_attribution_server.front_end.http.connection import Connection
from neuron_attribution_server.front_end.security.authentication import tenant_of
from neuron_attribution_server.front_end.security.reloading import Reloaded
from neuron_attribution_server.front_end.security.tokens import TokenTable
from neuron_attribution_server.front_end.web import requests as web_requests
from neuron_attribution_server.front_end.web.answers import failure, success
from neuron_attribution_server.front_end.web.held_bytes import HeldBytes
from neuron_attribution_server.front_end.web.json_conversion import (
    JSON_LENGTH,
    check_answer,
    most_values,
    parsed,
    written,
)
from neuron_attribution_server.front_end.web.requests import in_time
from neuron_attribution_server.front_end.web.turns import QUICK, Conversions
from neuron_attribution_server.settings.config import ServerConfig

SERVICE = neuron_attribution_pb2.DESCRIPTOR.services_by_name["NeuronAttributionService"]
_REQUEST_BYTES = 64 * 2**20
"""Bytes of long requests that are held until they are read; of larger ones than usual, four may be."""
_ANSWER_BYTES = 256 * 2**20
"""Bytes of answers, as JSON, that are held until they are sent."""


@dataclass(frozen=True, slots=True)
class _Method:
    request: type[Message]
    response: type[Message]
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


class JsonCalls:
    """Answers /v1/METHOD for every call of the service that is no stream, its name in snake_case."""

    def __init__(self, config: ServerConfig, channel: grpc.aio.Channel, tokens: Reloaded[TokenTable] | None) -> None:
        self._largest_request = config.maximum_request_bytes
        self._most_values = most_values(config)
        self._tokens = tokens
        self._conversions = Conversions()
        held = max(_REQUEST_BYTES, 4 * config.maximum_request_bytes)
        self._requests = HeldBytes("requests", "read", held, config.tenant_share)
        self._answers = HeldBytes("answers", "sent", _ANSWER_BYTES, config.tenant_share)
        unary = [method for method in SERVICE.methods if not (method.client_streaming or method.server_streaming)]
        self._methods = {_snake_case(method.name): _method(method, channel) for method in unary}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one call. A caller who goes away cancels it."""
        arrived = asyncio.get_running_loop().time()
        identity = ""
        try:
            metadata = web_requests.metadata(request)
            tenant = ANONYMOUS if self._tokens is None else tenant_of(self._tokens, metadata)  # before the body costs
            method = self._method(request)
            deadline = arrived + web_requests.timeout(request)
            async with in_time(deadline):
                message = await self._message(request, method, tenant)
            call = method.call(message, timeout=_remaining(deadline), metadata=metadata)
            answer = await call
            identity = _identity(await call.trailing_metadata())
            return await self._send(request, answer, method, tenant, deadline, identity)
        except grpc.aio.AioRpcError as error:
            return failure(from_rpc_error(error, "the server"), _identity(error.trailing_metadata()))
        except NeuronAttributionError as error:
            return failure(error, identity)

    def close(self) -> None:
        """Begin no more conversions."""
        self._conversions.close()

    async def _message(self, request: web.Request, method: _Method, tenant: str) -> bytes:
        """The call's request, serialized."""
        with self._requests.message(tenant) as held:
            body = await web_requests.body(request, self._largest_request, held)
            work = partial(parsed, body, method.request, self._most_values)
            return await self._conversions.run(tenant, len(body), work)

    async def _send(
        self, request: web.Request, answer: bytes, method: _Method, tenant: str, deadline: float, identity: str
    ) -> web.StreamResponse:
        """Send the answer; what is not read of it by the deadline is not sent."""
        check_answer(answer)
        with self._answers.message(tenant) as held:
            held.grow_to(JSON_LENGTH * len(answer) - QUICK)
            async with in_time(deadline):
                text = await self._conversions.run(tenant, len(answer), partial(written, answer, method.response))
            response = success(text, identity)
            if isinstance(request.protocol, Connection):
                await request.protocol.send(request, response, deadline)
            return response

    def _method(self, request: web.Request) -> _Method:
        method = self._methods.get(request.match_info["method"])
        if method is None:
            raise UnimplementedError(f"there is no such call; there are /v1/{', /v1/'.join(self._methods)}")
        return method


def _method(method: MethodDescriptor, channel: grpc.aio.Channel) -> _Method:
    request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    return _Method(request, response, channel.unary_unary(f"/{SERVICE.full_name}/{method.name}", bytes, bytes))


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _remaining(deadline: float) -> float:
    """Seconds until the deadline. Raises DeadlineExceededError."""
    remaining = deadline - asyncio.get_running_loop().time()
    if remaining <= 0:
        raise DeadlineExceededError("the time allowed ran out")
    return remaining


def _identity(metadata: Any) -> str:  # noqa: ANN401 - gRPC's metadata, pairs
    return str(dict(metadata or ()).get(REQUEST_ID_KEY, ""))
