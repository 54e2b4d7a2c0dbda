"""Answers as JSON over HTTP: of a call its message, of an error a google.rpc.Status."""

from __future__ import annotations

import math

import grpc
from aiohttp import web
from google.protobuf import json_format
from neuron_attribution.errors import InvalidArgumentError, NeuronAttributionError
from neuron_attribution.transport.status import status_code, to_status

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


def success(text: str, identity: str) -> web.Response:
    """A call's answer."""
    return _json(200, text, identity)


def failure(error: NeuronAttributionError, identity: str = "") -> web.Response:
    """An error as it is answered."""
    status = 415 if error.reason == _ENCODED else HTTP_STATUSES[status_code(error)]
    response = _json(status, json_format.MessageToJson(to_status(error)), identity)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    if response.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def encoded() -> InvalidArgumentError:
    """The error of a request that is compressed, which 415 belongs to."""
    return InvalidArgumentError("the request has a Content-Encoding: send it uncompressed", reason=_ENCODED)


def _json(status: int, text: str, identity: str) -> web.Response:
    headers = {"Cache-Control": "no-store"} | ({"X-Request-Id": identity} if identity else {})
    return web.Response(status=status, text=text, content_type="application/json", headers=headers)
