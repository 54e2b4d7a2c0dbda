"""Every call, whoever serves or refuses it, seen from the outside: when it begins, how it ends, how long it takes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import grpc

from neuron_attribution_server.front_end.calls.call_log import log_call
from neuron_attribution_server.front_end.calls.calls import Call, current_call, request_id
from neuron_attribution_server.front_end.interceptors.errors import OURS, Context, Handler
from neuron_attribution_server.front_end.observability.metrics import Metrics
from neuron_attribution_server.front_end.observability.rpc_metrics import MethodMetrics, RpcMetrics

if TYPE_CHECKING:
    from neuron_attribution_server.front_end.observability.tracing import Tracing

_HANDLERS: dict[tuple[bool, bool], tuple[str, Callable[..., Handler]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
_DEADLINE_SLACK = 0.1
"""Seconds by which a caller, whose clock started earlier, cancels before the deadline has come here."""
_LOOK_SECONDS = 0.05
_LOOKS_WITHOUT_A_CALL = 3


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """The first interceptor of a server: it sees what the others refuse, too."""

    def __init__(self, metrics: Metrics, rpcs: RpcMetrics, tracing: Tracing | None = None) -> None:
        self._metrics = metrics
        self._rpcs = rpcs
        self._tracing = tracing
        self._arrived = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the call's handler, observed."""
        path, metadata = handler_call_details.method, handler_call_details.invocation_metadata
        call = Call(self._metrics, request_id(metadata), is_ours=path.startswith(OURS))
        self._arrived += call.is_ours
        current_call.set(call)
        handler: Any = await continuation(handler_call_details)  # None for a call nobody serves
        observation = _Observation(call, self._rpcs.of(path), self._tracing)
        if handler is None:
            observation.begins()
            observation.ends(grpc.StatusCode.UNIMPLEMENTED)
            return cast(Handler, handler)
        if self._tracing is not None and call.is_ours:
            call.span = self._tracing.call_begins(path, metadata)
        kind, make = _HANDLERS[handler.request_streaming, handler.response_streaming]
        behaviour = observation.of(getattr(handler, kind))
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    async def lull(self, seconds: float) -> None:
        """Return when no call has come for a moment, or after so many seconds.

        gRPC takes calls from its queue one by one, and cancels those that are still in it when a server stops.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                seen, quiet = self._arrived, 0
                while quiet < _LOOKS_WITHOUT_A_CALL:
                    await asyncio.sleep(_LOOK_SECONDS)
                    quiet = quiet + 1 if self._arrived == seen else 0
                    seen = self._arrived


class _Observation:
    """One call under observation; as a context manager, while its handler runs."""

    def __init__(self, call: Call, method: MethodMetrics, tracing: Tracing | None) -> None:
        self._call = call
        self._method = method
        self._tracing = tracing
        self._started = 0.0
        self._context: Context | None = None

    def of(self, behaviour: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
        """A behaviour that is observed, of the same sort: what returns or writes responses, or generates them."""

        async def run(requests: Any, context: Context) -> Any:  # noqa: ANN401 - any requests and response
            with self._while_running(context):
                return await behaviour(requests, context)

        async def generate(requests: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            with self._while_running(context):
                async for response in behaviour(requests, context):
                    yield response

        return generate if inspect.isasyncgenfunction(behaviour) else run

    def begins(self) -> None:
        """Note that the handler begins."""
        self._method.started()
        self._started = time.perf_counter()

    def ends(self, code: grpc.StatusCode) -> None:
        """Note how the call ended."""
        call = self._call
        seconds = time.perf_counter() - self._started - call.waited
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and call.is_ours and not call.reason:
            call.metrics.rejected(code.name)  # gRPC was faster than the handler
        self._method.handled(code, seconds, call.exemplar)
        if self._tracing is not None and call.span is not None:
            self._tracing.call_ended(call.span, code)
        # The response goes out first: whoever reads the log may be slow.
        asyncio.get_running_loop().call_soon(log_call, call, self._method.name, code, seconds)

    def _while_running(self, context: Context) -> _Observation:
        self._context = context
        return self

    def __enter__(self) -> None:
        self.begins()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._context is not None
        self.ends(status_of(error, self._context))


def status_of(error: BaseException | None, context: Context) -> grpc.StatusCode:
    """The status a call ends with."""
    code: grpc.StatusCode | None = context.code()
    if code is not None:
        return code
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, grpc.aio.BaseError):  # what it was sent, the caller was not there to take
        return grpc.StatusCode.CANCELLED
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        remaining: float | None = context.time_remaining()
        is_late = remaining is not None and remaining < _DEADLINE_SLACK
        return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN
