"""A call's headers leave when its answer is computed: before the answer, and not before that."""

import asyncio
import threading
from contextlib import contextmanager

import grpc
import pytest
from neuron_attribution.errors import UnavailableError
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.services import SERVICE
from service.fakes import FakeEngine
from service.servers import PATIENCE, attribution, failure, running_server


class WrittenSlowly(ThreadWorker):
    """Says that a batch is computed and then keeps its answers, until they are `released`."""

    def __init__(self, failing=False):
        super().__init__(FakeEngine())
        self.computable, self.released = threading.Event(), threading.Event()
        self._failing = failing

    async def run(self, tasks, listener=None):
        if listener is None:  # warming up
            return await super().run(tasks)
        await asyncio.to_thread(self.computable.wait, PATIENCE)
        answers = await super().run(tasks, listener)
        await asyncio.to_thread(self.released.wait, PATIENCE)
        if self._failing:
            raise UnavailableError("the worker is gone", reason="WORKER_DIED", retry_after=1.0)
        return answers


@contextmanager
def serving(worker):
    with running_server(worker, cache_bytes=0) as server:
        assert server.loaded.wait(PATIENCE)
        try:
            yield server
        finally:
            worker.computable.set()
            worker.released.set()


CALLS = {
    "Attribute": attribution(),
    "Trace": messages.TraceRequest(prompt=attribution().prompt),
    "ProjectNeuron": messages.ProjectNeuronRequest(
        neurons=[messages.Neuron(ffn=messages.FfnNeuron(layer=0, index=1))], top_k=1
    ),
    "Intervene": messages.InterveneRequest(
        prompt=attribution().prompt,
        sets=[
            messages.InterventionSet(
                interventions=[messages.Intervention(heads=[messages.Head(layer=0, head=0)], zero=True)]
            )
        ],
    ),
}


def begun(server, method):
    """A call whose client takes the answer for a stream of one: only then does it show headers before the answer."""
    return server.channel.unary_stream(f"/{SERVICE}/{method}")(CALLS[method].SerializeToString(), timeout=PATIENCE)


@pytest.mark.parametrize("method", CALLS)
def test_headers_come_when_the_answer_is_computed_and_before_it(method):
    worker = WrittenSlowly()
    with serving(worker) as server:
        call = begun(server, method)
        arrived = threading.Event()
        threading.Thread(target=lambda: (call.initial_metadata(), arrived.set()), daemon=True).start()
        assert not arrived.wait(0.3)
        worker.computable.set()
        assert arrived.wait(PATIENCE)
        assert call.is_active()
        worker.released.set()
        assert len(list(call)) == 1
        assert dict(call.trailing_metadata())["x-request-id"]


def test_what_fails_after_the_headers_still_says_why():
    worker = WrittenSlowly(failing=True)
    with serving(worker) as server:
        call = begun(server, "Attribute")
        worker.computable.set()
        call.initial_metadata()
        assert call.is_active()
        worker.released.set()
        error, status = failure(lambda: list(call))
        assert status.code() is grpc.StatusCode.UNAVAILABLE
        assert (error.reason, error.retry_after) == ("WORKER_DIED", 1.0)


def test_a_caller_that_leaves_between_headers_and_answer_harms_nobody():
    worker = WrittenSlowly()
    with serving(worker) as server:
        call = begun(server, "Attribute")
        worker.computable.set()
        call.initial_metadata()
        call.cancel()
        worker.released.set()
        assert server.attribute().explanations
