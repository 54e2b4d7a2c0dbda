"""The service's calls: read and tokenize, schedule, write. What takes time happens off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message
from neuron_attribution.errors import (
    DeadlineExceededError,
    ResourceExhaustedError,
    UnavailableError,
)
from neuron_attribution.results import Timings
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services

from neuron_attribution_server.front_end.calls.calls import current_call
from neuron_attribution_server.front_end.conversations.origins import Origins
from neuron_attribution_server.front_end.scheduling.request_queue import Delivery
from neuron_attribution_server.front_end.scheduling.scheduler import Scheduler
from neuron_attribution_server.front_end.service.early_headers import EarlyHeaders
from neuron_attribution_server.front_end.service.reading_limit import ReadingLimit
from neuron_attribution_server.front_end.service.rendering_turns import RenderingTurns
from neuron_attribution_server.front_end.service.result_cache import Kept, ResultCache
from neuron_attribution_server.front_end.service.served_model import PreparedAttribution, PreparedTrace, ServedModel
from neuron_attribution_server.front_end.service.stream_items import (
    ReadItem,
    has_conversation,
    in_turn,
    item_error,
    largest_answer,
    read_item,
    token_by_token,
)
from neuron_attribution_server.front_end.service.streaming import Answer, Item, ItemStream, retry
from neuron_attribution_server.front_end.service.task_sizes import task_bytes
from neuron_attribution_server.front_end.transfer.exchange import ITEM_COPIES, Exchange, Received
from neuron_attribution_server.tasks.answers import PackedAttribution, PackedProjections, PackedTrace
from neuron_attribution_server.tasks.tasks import AttributeTask, Task, TraceTask

Value = TypeVar("Value")
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_THREADS = 2
_SHORT_REQUEST = 2 * 1024
"""Bytes up to which a request is read on the event loop: that takes less time than handing it to a thread."""
_TOKENIZED = 16
"""How many bytes of an answer with tokens a byte of a text becomes, about and at most."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What the calls work with once the model is ready."""

    model: ServedModel
    scheduler: Scheduler
    cache: ResultCache


class AttributionServicer(services.NeuronAttributionServiceServicer):
    """Answers calls; before `open` and after `close` every call is refused as unavailable."""

    def __init__(self, message_bytes: int, key_bytes: int, stream_window: int, tenant_share: float) -> None:
        self._message_bytes = message_bytes
        self._key_bytes = key_bytes
        self._stream_window = stream_window
        self._backend: Backend | None = None
        self._refusal = UnavailableError("the model is still loading; try again soon", reason="MODEL_LOADING")
        self._reading = ReadingLimit(tenant_share)
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="messages")
        self._conversations = RenderingTurns(tenant_share)

    def open(self, backend: Backend) -> None:
        """Begin to answer."""
        self._backend = backend

    def close(self, refusal: UnavailableError) -> None:
        """Refuse every call from now on."""
        self._backend = None
        self._refusal = refusal

    async def end_rendering(self) -> None:
        """End the processes that render conversations: no call will need them."""
        if self._backend is not None:
            await asyncio.to_thread(self._backend.model.close)

    async def Attribute(self, request: Received[messages.AttributeRequest], exchange: Exchange) -> bytes:
        """Explain next-token predictions. The response is serialized already."""
        backend = self._ready()
        backend.scheduler.check_room()  # before work is done on a request that cannot be taken
        with backend.scheduler.expecting():
            prepared = await self._read(request, backend.model.prepare_attribution)
        self._expect(backend, request, exchange, prepared.task, prepared.origins)
        answer = await self._attribute(backend, prepared, partial(_submit, backend, exchange))
        self._check_size(sum(map(len, answer)))
        return b"".join(answer)

    async def AttributeStream(self, items: AsyncIterator[Item], exchange: Exchange) -> None:
        """Explain a corpus. Each item is answered by the model that is ready then."""
        self._ready()
        deadline = _deadline(exchange)

        async def answers(item: Item) -> AsyncGenerator[Answer, None]:
            with self._expecting():
                message, read = await retry(partial(self._read_first, item, self._read_item), deadline)
                if read is None:
                    read = await retry(partial(self._rendered, message, self._read_item), deadline)
                del message
            try:
                async with aclosing(self._item_answers(read, item, exchange, deadline)) as found:
                    async for answer in found:
                        yield answer
            except DeadlineExceededError:  # it is the whole stream's
                raise
            except Exception as error:
                yield partial(item_error, read.key, current_call.get().public(error))

        await ItemStream(self._stream_window, answers).run(items, exchange)

    async def ProjectNeuron(self, request: Received[messages.ProjectNeuronRequest], exchange: Exchange) -> bytes:
        """Project neurons into the vocabulary. The response is serialized already."""
        backend = self._ready()
        backend.scheduler.check_room()
        with backend.scheduler.expecting():
            task = await self._read(request, backend.model.prepare_projection)
        self._expect(backend, request, exchange, task)
        delivery = await _submit(backend, exchange, task)
        assert isinstance(delivery.outcome, PackedProjections)
        self._check_size(len(delivery.outcome.response))
        return delivery.outcome.response

    async def Intervene(
        self, request: Received[messages.InterveneRequest], exchange: Exchange
    ) -> messages.InterveneResponse:
        """Rerun a prompt with neurons changed."""
        backend = self._ready()
        backend.scheduler.check_room()
        with backend.scheduler.expecting():
            prepared = await self._read(request, backend.model.prepare_intervention)
        current_call.get().prepared(prepared.task.token_ids, prepared.tokenization)
        self._expect(backend, request, exchange, prepared.task, prepared.origins)
        delivery = await _submit(backend, exchange, prepared.task)
        return self._within_size(await self._apart(partial(backend.model.finish_intervention, prepared, delivery)))

    async def Trace(self, request: Received[messages.TraceRequest], exchange: Exchange) -> bytes:
        """Follow a prediction back to the prompt. The response is serialized already."""
        backend = self._ready()
        backend.scheduler.check_room()
        with backend.scheduler.expecting():
            prepared = await self._read(request, backend.model.prepare_trace)
        self._expect(backend, request, exchange, prepared.task, prepared.origins)
        answer, timings = await self._answered(backend, prepared, partial(_submit, backend, exchange))
        assert isinstance(answer, PackedTrace)
        response = backend.model.finish_trace(answer, timings, prepared.origins)
        self._check_size(len(response))
        return response

    async def Tokenize(
        self, request: Received[messages.TokenizeRequest], exchange: Exchange
    ) -> messages.TokenizeResponse:
        """Show the exact tokens of a text or a conversation."""
        model, call = self._ready().model, current_call.get()
        exchange.expect(min(_TOKENIZED * request.size, self._message_bytes))

        def tokenize(message: messages.TokenizeRequest) -> messages.TokenizeResponse:
            call.reads(message.text)
            response = model.tokenize(message)
            if response.text:
                call.reads(response.text)
            return response

        return self._within_size(await self._read(request, tokenize))

    async def GetModel(
        self, request: Received[messages.GetModelRequest], exchange: Exchange
    ) -> messages.GetModelResponse:
        """Describe what is served."""
        return await self._read(request, self._ready().model.describe)

    def _read_item(self, message: messages.AttributeStreamRequest) -> ReadItem:
        return read_item(message, self._key_bytes, lambda: self._ready().model)

    async def _item_answers(
        self, read: ReadItem, item: Item, exchange: Exchange, deadline: float | None
    ) -> AsyncGenerator[Answer, None]:
        """The answers of one item. It waits for room before anything is computed, or taken from the cache."""
        if isinstance(read.prepared, Exception):
            raise read.prepared
        task = read.prepared.task
        item.takes(task_bytes(task))
        answers = task.rows if read.each_token else 1
        room = ITEM_COPIES * self._expected_bytes(self._ready(), task, read.prepared.origins, answers)
        with await retry(partial(exchange.answers.room, room), deadline) as held:
            # A server that gives up meanwhile says so to whoever waits.
            answer = await self._attribute(
                self._ready(),
                read.prepared,
                lambda task: retry(lambda: self._ready().scheduler.submit(task, deadline), deadline),
            )
            held.resize(ITEM_COPIES * sum(map(len, answer)))
            parts = token_by_token(*answer) if read.each_token else [answer]
            self._check_size(largest_answer(read.key, parts))
            for each in in_turn(read.key, parts):
                yield each

    async def _attribute(
        self, backend: Backend, prepared: PreparedAttribution, submit: Callable[[AttributeTask], Awaitable[Delivery]]
    ) -> tuple[bytes, bytes]:
        """Look into the cache or `submit`, and write."""
        answer, timings = await self._answered(backend, prepared, submit)
        assert isinstance(answer, PackedAttribution)
        return backend.model.finish_attribution(answer, timings, prepared.origins)

    async def _answered(
        self,
        backend: Backend,
        prepared: PreparedAttribution | PreparedTrace,
        submit: Callable[[Any], Awaitable[Delivery]],
    ) -> tuple[Kept, Timings]:
        """What is in the cache, or what `submit` brings, which is kept there."""
        model, task = backend.model, prepared.task
        current_call.get().prepared(task.token_ids, prepared.tokenization)
        answer = backend.cache.get(model.identity, task)
        if answer is not None:
            return answer, Timings(tokenization=prepared.tokenization, batch_requests=0, cached=True)
        delivery = await submit(task)
        assert isinstance(delivery.outcome, PackedAttribution | PackedTrace)
        backend.cache.put(model.identity, task, delivery.outcome)
        timings = replace(
            delivery.outcome.timings,
            queue=delivery.queue,
            tokenization=prepared.tokenization,
            predicted=delivery.predicted,
        )
        return delivery.outcome, timings

    def _expect(
        self,
        backend: Backend,
        request: Received[Any],
        exchange: Exchange,
        task: Task,
        origins: Origins | None = None,
    ) -> None:
        """Count what a task takes and its answer will. Raises ResourceExhaustedError where there is no room for it."""
        request.takes(task_bytes(task))
        exchange.expect(self._expected_bytes(backend, task, origins))

    def _expected_bytes(self, backend: Backend, task: Task, origins: Origins | None, messages: int = 1) -> int:
        """What the answer will have, in so many messages: more than these may have is refused, and held no longer."""
        cached = None
        if isinstance(task, AttributeTask | TraceTask):
            cached = backend.cache.size(backend.model.identity, task)
        said = 0 if origins is None else messages * origins.bytes(task.length)
        return min((cached or backend.model.answer_bytes(task)) + said, messages * self._message_bytes)

    def _expecting(self) -> AbstractContextManager[None]:
        return nullcontext() if self._backend is None else self._backend.scheduler.expecting()

    def _ready(self) -> Backend:
        if self._backend is None:
            raise UnavailableError(self._refusal.message, reason=self._refusal.reason)
        return self._backend

    async def _read(self, request: Received[Request], work: Callable[[Request], Value]) -> Value:
        """What reads a request: one with a conversation apart from all others."""
        message, value = await self._read_first(request, work)
        return await self._rendered(message, work) if value is None else value

    async def _read_first(
        self, request: Received[Request], work: Callable[[Request], Value]
    ) -> tuple[Request, Value | None]:
        """A message, and what reads it: a short one at once, a long one off the event loop, where there is a place.

        A conversation is read when it is rendered.
        """

        def read() -> tuple[Request, Value | None]:
            message = request.take()
            return message, None if has_conversation(message) else work(message)

        if request.size <= _SHORT_REQUEST:
            return read()
        with self._reading.place():
            return await self._apart(read)

    async def _rendered(self, message: Request, work: Callable[[Request], Value]) -> Value:
        """What reads a conversation, when it is its turn."""
        return await self._conversations.run(partial(work, message))

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
                "parts, neurons, sets, nodes or projected tokens",
                reason="RESPONSE_TOO_LARGE",
            )


async def _submit(backend: Backend, exchange: Exchange, task: Task) -> Delivery:
    async with EarlyHeaders(exchange) as headers:
        return await backend.scheduler.submit(task, _deadline(exchange), headers.send)


def _deadline(exchange: Exchange) -> float | None:
    """When the caller stops waiting, on the event loop's clock."""
    remaining = exchange.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining
