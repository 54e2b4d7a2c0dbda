"""The one place where errors become statuses."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError
from neuron_attribution.errors import InvalidArgumentError, NeuronAttributionError, ResourceExhaustedError
from neuron_attribution.status import PUSHBACK_KEY, public_message, status_code, trailing_metadata

from neuron_attribution_server.calls import REQUEST_ID_KEY, Call, current_call

OURS = "/neuron_attribution."
_DO_NOT_RETRY = "-1"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only
Context = grpc.aio.ServicerContext[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Wraps every call of this service; health and reflection keep their own ways. Comes after the CallInterceptor."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the call's handler, guarded."""
        handler: Any = await continuation(handler_call_details)  # None for a call nobody serves
        if handler is None or not handler_call_details.method.startswith(OURS):
            return cast(Handler, handler)
        guard = _Guard(current_call.get())
        coders = {
            "request_deserializer": _or_malformed(handler.request_deserializer),
            "response_serializer": _unless_serialized(handler.response_serializer),
        }
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(guard.unary(handler.unary_unary), **coders)
        return grpc.stream_stream_rpc_method_handler(guard.stream(handler.stream_stream), **coders)


@dataclass(frozen=True, slots=True)
class _Malformed:
    """A request that is no protobuf message of its type."""

    message: str


@dataclass(frozen=True, slots=True)
class _Guard:
    """Runs one call's handler; whatever it raises becomes a status with details."""

    call: Call

    def unary(self, behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401 - any request and response
            context.set_trailing_metadata(((REQUEST_ID_KEY, self.call.request_id),))
            try:
                return await behaviour(_well_formed(request), context)
            except Exception as error:
                await self._abort(error, context)

        return call

    def stream(self, behaviour: Callable[[Any, Context], Awaitable[None]]) -> Callable[[Any, Context], Awaitable[None]]:
        """Guard a behaviour that writes its responses to the context."""

        async def call(requests: Any, context: Context) -> None:  # noqa: ANN401 - any requests
            context.set_trailing_metadata(((REQUEST_ID_KEY, self.call.request_id),))
            try:
                await behaviour(_all_well_formed(requests), context)
            except Exception as error:
                await self._abort(error, context)

        return call

    async def _abort(self, caught: Exception, context: Context) -> NoReturn:
        error = self.call.public(caught)
        metadata = (*trailing_metadata(error), (REQUEST_ID_KEY, self.call.request_id))
        if error.retry_after is None and _harms_again(error):
            metadata += ((PUSHBACK_KEY, _DO_NOT_RETRY),)
        await context.abort(status_code(error), public_message(error), metadata)


def _harms_again(error: NeuronAttributionError) -> bool:
    """Whether the same request must fail again: it is too large, or the worker died of it."""
    return isinstance(error, ResourceExhaustedError) or error.reason == "WORKER_DIED"


def _or_malformed(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """gRPC answers UNKNOWN with the parser's words where a deserializer raises, so the refusal is left to the guard."""

    def read(data: bytes) -> Any:  # noqa: ANN401 - any request
        try:
            return deserialize(data)
        except DecodeError:
            return _Malformed(
                "the request is not a protobuf message of this call's request type, or a text in it is not valid UTF-8"
            )

    return read


def _unless_serialized(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A response that comes from the worker is bytes already."""
    return lambda response: response if isinstance(response, bytes) else serialize(response)


def _well_formed(request: Any) -> Any:  # noqa: ANN401 - any request
    if isinstance(request, _Malformed):
        raise InvalidArgumentError(request.message, reason="MALFORMED_MESSAGE")
    return request


async def _all_well_formed(requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _well_formed(request)
