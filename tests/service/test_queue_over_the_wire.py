"""Batches, deadlines, cancellation and a full queue, as clients on a real port see them."""

from queue import SimpleQueue

import grpc
from neuron_attribution.status import from_rpc_error
from neuron_attribution_server.thread_worker import ThreadWorker
from service.fakes import TOKENIZER
from service.servers import PATIENCE, attribution, failure, running_server


def seen_texts(engine):
    return [TOKENIZER.text(task.token_ids[-1]) for batch in engine.batches for task in batch]


def test_two_clients_at_once_share_a_batch(server, engine):
    """What two clients send while the worker is busy runs as one batch."""
    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as other_channel:
        other = type(server)(server.address, other_channel, server.loaded)
        calls = [each.stub.Attribute.future(attribution(), timeout=PATIENCE) for each in (server, other)]
        for each in (server, other):
            failure(lambda each=each: each.stub.Attribute(attribution(), timeout=0.5))  # by now the calls have arrived
        engine.released.set()
        assert [call.result().timings.batch_requests for call in calls] == [2, 2]
        assert first.result().timings.batch_requests == 1


def test_an_expired_request_is_never_run(server, engine):
    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    _, status = failure(lambda: server.stub.Attribute(attribution(" Rome"), timeout=0.2))
    assert status.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    engine.released.set()
    assert first.result().explanations
    assert server.attribute(attribution(" is")).explanations
    assert seen_texts(engine) == [" is", " is"]


def test_a_cancelled_request_is_never_run(server, engine):
    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    cancelled = server.stub.Attribute.future(attribution(" Rome"), timeout=PATIENCE)
    assert cancelled.cancel()
    server.stub.Attribute.future(attribution(), timeout=0.2).exception()  # by now the cancellation has arrived
    engine.released.set()
    assert first.result().explanations
    assert server.attribute(attribution(" is")).explanations
    assert seen_texts(engine) == [" is", " is"]


def test_a_full_queue_pushes_back(engine):
    with running_server(ThreadWorker(engine), queued_requests=1) as server, engine:
        assert server.loaded.wait(PATIENCE)
        engine.hold()
        first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
        assert engine.started.wait(PATIENCE)
        pair = [server.stub.Attribute.future(attribution(), timeout=PATIENCE) for _ in range(2)]
        # One of the two gets the only place; the other one is refused while the first still waits.
        refused = next(done for done in _as_completed(pair) if done.exception() is not None)
        error = from_rpc_error(refused.exception(), server.address)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "QUEUE_FULL"
        assert error.retry_after > 0
        assert int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]) == round(error.retry_after * 1000)
        engine.released.set()
        assert all(call.result().explanations for call in (first, *pair) if call is not refused)
        assert server.attribute().explanations


def _as_completed(calls):
    done = SimpleQueue()
    for call in calls:
        call.add_done_callback(done.put)
    for _ in calls:
        yield done.get(timeout=PATIENCE)
