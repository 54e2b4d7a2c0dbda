"""The one place where errors become statuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
from neuron_attribution.errors import NeuronAttributionError, ResourceExhaustedError
from neuron_attribution.transport.status import PUSHBACK_KEY

from neuron_attribution_server.front_end.calls.calls import Call, current_call
from neuron_attribution_server.front_end.transfer.exchange import CallerGoneError, Exchange, Received, Terms

OURS = "/neuron_attribution."
UNREAD = "UNREAD"
"""The reason in the log of a call that ended because its caller did not read an answer."""
_DO_NOT_RETRY = ((PUSHBACK_KEY, "-1"),)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only
Context = grpc.aio.ServicerContext[Any, Any]
Deserialize = Callable[[bytes], Any]
Unary = Callable[[Received[Any], Exchange], Awaitable[Any]]
Stream = Callable[[AsyncIterator[Received[Any]], Exchange], Awaitable[None]]


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Wraps every call of this service; health and reflection keep their own ways. Comes after the CallInterceptor.

    Handlers are given an Exchange for gRPC's context, and requests that nobody has read yet. To gRPC all of them are
    streams: of those it tells when a message was taken, and it lets their requests wait.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the call's handler, guarded."""
        handler: Any = await continuation(handler_call_details)  # None for a call nobody serves
        if handler is None or not handler_call_details.method.startswith(OURS):
            return cast(Handler, handler)
        guard = _Guard(current_call.get(), self._terms, handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary is not None:
            return grpc.stream_stream_rpc_method_handler(guard.unary(handler.unary_unary))
        return grpc.stream_stream_rpc_method_handler(guard.stream(handler.stream_stream))


@dataclass(frozen=True, slots=True)
class _Guard:
    """Runs one call's handler; whatever it raises becomes a status with details."""

    call: Call
    terms: Terms
    deserialize: Deserialize
    serialize: Callable[[Any], bytes]

    def unary(self, behaviour: Unary) -> Callable[[Any, Context], Awaitable[None]]:
        """Guard a behaviour that returns its response."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(self._serialized(await behaviour(await exchange.request(self.deserialize), exchange)))

        return self._guarded(answer)

    def stream(self, behaviour: Stream) -> Callable[[Any, Context], Awaitable[None]]:
        """Guard a behaviour that writes its responses to the exchange."""

        async def answer(exchange: Exchange) -> None:
            await behaviour(exchange.requests(self.deserialize), exchange)

        return self._guarded(answer)

    def _guarded(self, answer: Callable[[Exchange], Awaitable[None]]) -> Callable[[Any, Context], Awaitable[None]]:
        async def call(_: Any, context: Context) -> None:  # noqa: ANN401 - gRPC's own way to read requests
            exchange = Exchange(context, self.call, self.terms)
            try:
                with exchange:
                    await self._answered(answer, exchange)
            except CallerGoneError:
                raise asyncio.CancelledError from None
            finally:
                if exchange.caller_was_too_slow:
                    self.call.reason = UNREAD

        return call

    def _serialized(self, response: Any) -> bytes:  # noqa: ANN401 - any response
        """A response that comes from the worker is bytes already."""
        return response if isinstance(response, bytes) else self.serialize(response)

    async def _answered(self, answer: Callable[[Exchange], Awaitable[None]], exchange: Exchange) -> None:
        try:
            await answer(exchange)
        except CallerGoneError:
            raise
        except Exception as caught:
            error = self.call.public(caught)
            await exchange.abort(error, _DO_NOT_RETRY if error.retry_after is None and _harms_again(error) else ())


def _harms_again(error: NeuronAttributionError) -> bool:
    """Whether the same request must fail again: it is too large, or the worker died of it."""
    return isinstance(error, ResourceExhaustedError) or error.reason == "WORKER_DIED"
