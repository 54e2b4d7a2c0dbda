"""Bearer tokens: who is calling, and calls that are refused for want of a valid one."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

import grpc
from neuron_attribution.errors import UnauthenticatedError
from neuron_attribution.transport.status import public_message, status_code, trailing_metadata

from neuron_attribution_server.front_end.calls.calls import REQUEST_ID_KEY, current_call
from neuron_attribution_server.front_end.calls.tenants import current_tenant
from neuron_attribution_server.front_end.interceptors.errors import Context, Handler
from neuron_attribution_server.front_end.security.reloading import Reloaded
from neuron_attribution_server.front_end.security.tokens import TokenLineError, TokenTable, parse_tokens
from neuron_attribution_server.settings.config import ConfigurationError
from neuron_attribution_server.settings.regular_files import read_whole

_LOOK_SECONDS = 1.0
_SEND = (
    "send the metadata 'authorization: Bearer TOKEN' (on the command line: --token-file, or NEURON_ATTRIBUTION_TOKEN)"
)

_log = logging.getLogger(__name__)


def token_file(path: str) -> Reloaded[TokenTable]:
    """The tokens of a file, looked at once a second at most. Raises ConfigurationError."""
    return Reloaded([path], partial(_read, path), _LOOK_SECONDS)


def tenant_of(tokens: Reloaded[TokenTable], metadata: Any) -> str:  # noqa: ANN401 - gRPC's metadata, a tuple of pairs
    """The tenant whose token a call brings. Raises UnauthenticatedError."""
    token = _bearer_token(metadata)
    if token is None:
        raise UnauthenticatedError(f"this server asks for a bearer token: {_SEND}", reason="TOKEN_MISSING")
    tokens.refresh()
    tenant = tokens.value.tenant_of(token)
    if tenant is None:
        raise UnauthenticatedError(
            "the bearer token is not, or no longer, valid here: ask whoever runs this server for another",
            reason="TOKEN_INVALID",
        )
    return tenant


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Refuses calls without a valid token, and sets the tenant of the others. `open_services` need none."""

    def __init__(self, tokens: Reloaded[TokenTable], open_services: Collection[str] = ()) -> None:
        self._tokens = tokens
        self._open = frozenset(open_services)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the call's handler, or one that refuses it."""
        if _service(handler_call_details.method) in self._open:
            return await continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata
        try:
            # The call runs in this task, so whatever handles it finds its tenant.
            current_tenant.set(tenant_of(self._tokens, metadata))
        except UnauthenticatedError as error:
            call = current_call.get()
            call.failed(error)
            return _refusal(error, call.request_id)
        return await continuation(handler_call_details)


def _read(path: str) -> TokenTable:
    try:
        table = parse_tokens(_text(path))
    except TokenLineError as error:
        raise ConfigurationError(f"token_file: {path}: {error}") from None
    if not table.tokens:
        _log.warning("token_file: %s names no token: every call is refused", path)
    return table


def _text(path: str) -> str:
    content = read_whole(path, "token_file")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ConfigurationError(f"token_file: {path} is UTF-16 or has NUL bytes: save it as UTF-8")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"token_file: {path} is not a text file in UTF-8: save it as one") from None


def _service(method: str) -> str:
    return method.rpartition("/")[0].removeprefix("/")


def _bearer_token(metadata: Any) -> str | None:  # noqa: ANN401 - gRPC's metadata, a tuple of pairs
    value = dict(metadata or ()).get("authorization", "")
    scheme, _, token = value.partition(" ") if isinstance(value, str) else ("", "", "")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _refusal(error: UnauthenticatedError, identity: str) -> Handler:
    """A handler for calls of every kind: one that streams may answer before it reads anything."""

    async def refuse(_requests: object, context: Context) -> None:
        metadata = (*trailing_metadata(error), (REQUEST_ID_KEY, identity))
        await context.abort(status_code(error), public_message(error), metadata)

    return grpc.stream_stream_rpc_method_handler(refuse)
