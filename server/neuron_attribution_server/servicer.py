"""The service's calls: read and tokenize, schedule, write. What takes time happens off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from neuron_attribution import convert
from neuron_attribution.errors import ResourceExhaustedError, UnavailableError
from neuron_attribution.results import Timings
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services

from neuron_attribution_server.calls import current_call
from neuron_attribution_server.early_headers import EarlyHeaders
from neuron_attribution_server.reading_room import ReadingRoom
from neuron_attribution_server.request_queue import Delivery
from neuron_attribution_server.result_cache import ResultCache
from neuron_attribution_server.scheduler import Scheduler
from neuron_attribution_server.served_model import ServedModel
from neuron_attribution_server.streaming import ItemStream, patiently, token_by_token
from neuron_attribution_server.tasks import AttributeTask, PackedAttribution, PackedProjections, Task

Value = TypeVar("Value")
Response = TypeVar("Response", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]
Read = Callable[[Message, Callable[[], Any]], Awaitable[Any]]

_THREADS = 2
_SHORT_REQUEST = 2 * 1024
"""Bytes up to which a request is read on the event loop: that takes less time than handing it to a thread."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What the calls work with once the model is ready."""

    model: ServedModel
    scheduler: Scheduler
    cache: ResultCache


class AttributionServicer(services.NeuronAttributionServiceServicer):
    """Answers calls; before `open` and after `close` every call is refused as unavailable."""

    def __init__(self, message_bytes: int, stream_window: int, tenant_share: float) -> None:
        self._message_bytes = message_bytes
        self._stream_window = stream_window
        self._backend: Backend | None = None
        self._refusal = UnavailableError("the model is still loading; try again soon", reason="MODEL_LOADING")
        self._reading = ReadingRoom(tenant_share)
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="messages")

    def open(self, backend: Backend) -> None:
        """Begin to answer."""
        self._backend = backend

    def close(self, refusal: UnavailableError) -> None:
        """Refuse every call from now on."""
        self._backend = None
        self._refusal = refusal

    async def Attribute(self, request: messages.AttributeRequest, context: Context) -> bytes:
        """Explain next-token predictions. The response is serialized already."""
        backend = self._ready()
        backend.scheduler.check_room()  # before work is done on a request that cannot be taken
        response = await self._attribute(backend, request, partial(_submit, backend, context), self._read)
        self._check_size(len(response))
        return response

    async def AttributeStream(self, requests: AsyncIterable[messages.AttributeStreamRequest], context: Context) -> None:
        """Explain a corpus. Each item is answered by the model that is ready then."""
        self._ready()
        deadline = _deadline(context)

        async def answer(item: messages.AttributeStreamRequest) -> list[bytes]:
            serialized = await self._attribute(
                self._ready(),
                item.request,
                # A server that gives up meanwhile says so to whoever waits.
                lambda task: patiently(lambda: self._ready().scheduler.submit(task, deadline), deadline),
                lambda request, work: patiently(partial(self._read, request, work), deadline),
                reproducible=item.reproducible,
            )
            if item.each_token:
                answers = await self._apart(partial(token_by_token, item.key, serialized))
            else:
                answers = [convert.stream_answer(item.key, serialized)]
            for each in answers:
                self._check_size(len(each))
            return answers

        await ItemStream(self._stream_window, answer, current_call.get().public).run(requests, context.write)

    async def ProjectNeuron(self, request: messages.ProjectNeuronRequest, context: Context) -> bytes:
        """Project neurons into the vocabulary. The response is serialized already."""
        backend = self._ready()
        backend.scheduler.check_room()
        with backend.scheduler.expecting():
            task = await self._read(request, partial(backend.model.prepare_projection, request))
        delivery = await _submit(backend, context, task)
        assert isinstance(delivery.outcome, PackedProjections)
        self._check_size(len(delivery.outcome.response))
        return delivery.outcome.response

    async def Intervene(self, request: messages.InterveneRequest, context: Context) -> messages.InterveneResponse:
        """Rerun a prompt with neurons changed."""
        backend = self._ready()
        backend.scheduler.check_room()
        with backend.scheduler.expecting():
            prepared = await self._read(request, partial(backend.model.prepare_intervention, request))
        current_call.get().prepared(prepared.task.token_ids, prepared.tokenization)
        delivery = await _submit(backend, context, prepared.task)
        return self._within_size(await self._apart(partial(backend.model.finish_intervention, prepared, delivery)))

    async def Tokenize(self, request: messages.TokenizeRequest, context: Context) -> messages.TokenizeResponse:
        """Show the exact tokens of a text."""
        current_call.get().reads(request.text)
        return self._within_size(await self._read(request, partial(self._ready().model.tokenize, request)))

    async def GetModel(self, request: messages.GetModelRequest, context: Context) -> messages.GetModelResponse:
        """Describe what is served."""
        return self._ready().model.describe(request)

    async def _attribute(
        self,
        backend: Backend,
        request: messages.AttributeRequest,
        submit: Callable[[AttributeTask], Awaitable[Delivery]],
        read: Read,
        *,
        reproducible: bool = False,
    ) -> bytes:
        """`read` and tokenize, look into the cache or `submit`, and write."""
        model = backend.model
        prepare = partial(model.prepare_attribution, request, reproducible=reproducible)
        with backend.scheduler.expecting():
            prepared = await read(request, prepare)
        current_call.get().prepared(prepared.task.token_ids, prepared.tokenization)
        answer = backend.cache.get(model.identity, prepared.task)
        if answer is not None:
            timings = Timings(tokenization=prepared.tokenization, batch_requests=0, cached=True)
        else:
            delivery = await submit(prepared.task)
            assert isinstance(delivery.outcome, PackedAttribution)
            answer = delivery.outcome
            backend.cache.put(model.identity, prepared.task, answer)
            timings = replace(
                answer.timings,
                queue=delivery.queue,
                tokenization=prepared.tokenization,
                predicted=delivery.predicted,
            )
        return model.finish_attribution(answer, timings)

    def _ready(self) -> Backend:
        if self._backend is None:
            raise UnavailableError(self._refusal.message, reason=self._refusal.reason)
        return self._backend

    async def _read(self, request: Message, work: Callable[[], Value]) -> Value:
        """What reads a request: a short one at once, a long one off the event loop, where there is a place for it."""
        if request.ByteSize() <= _SHORT_REQUEST:
            return work()
        with self._reading.place():
            return await self._apart(work)

    async def _apart(self, work: Callable[[], Value]) -> Value:
        """Off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _within_size(self, response: Response) -> Response:
        self._check_size(response.ByteSize())
        return response

    def _check_size(self, size: int) -> None:
        """Refuse by name what gRPC would refuse without saying what to do."""
        if size > self._message_bytes:
            raise ResourceExhaustedError(
                f"the answer has {size} bytes, over the limit {self._message_bytes}; ask for fewer explained tokens, "
                "parts, neurons, sets or projected tokens",
                reason="RESPONSE_TOO_LARGE",
            )


async def _submit(backend: Backend, context: Context, task: Task) -> Delivery:
    async with EarlyHeaders(context) as headers:
        return await backend.scheduler.submit(task, _deadline(context), headers.send)


def _deadline(context: Context) -> float | None:
    """When the caller stops waiting, on the event loop's clock."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining
