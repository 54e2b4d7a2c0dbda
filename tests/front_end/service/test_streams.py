"""AttributeStream over a real port: keys, order, failing items, backpressure, a full queue, cancellation."""

import asyncio
import threading
import time
from queue import SimpleQueue

import grpc
import pytest
from neuron_attribution import (
    AsyncClient,
    AttributeRequest,
    Client,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from neuron_attribution.transport.streams import READ_AHEAD
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.scheduling import scheduler
from neuron_attribution_server.front_end.service.streaming import retry
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import PROMPT, TOKENIZER, FakeEngine
from service.servers import PATIENCE, attribution, failure, running_server


def stream_directly(address, items, **options):
    with Client(address) as client:
        return list(client.attribute_stream(items, **options))


def stream_asynchronously(address, items, **options):
    async def arriving():
        for item in items:
            yield item
            await asyncio.sleep(0)

    async def run():
        async with AsyncClient(address) as client:
            return [outcome async for outcome in client.attribute_stream(arriving(), **options)]

    return asyncio.run(run())


@pytest.fixture(params=[stream_directly, stream_asynchronously], ids=["Client", "AsyncClient"])
def stream(request):
    return request.param


def item(key, text=PROMPT, **fields):
    return messages.AttributeStreamRequest(key=key, request=attribution(text, **fields))


def tasks(engine):
    return [task for batch in engine.batches for task in batch]


def test_every_item_is_answered_under_its_key(stream, server):
    items = [PROMPT, ("mine", " Rome"), ("also mine", AttributeRequest(prompt=" is", generate=1))]
    outcomes = {outcome.key: outcome for outcome in stream(server.address, items)}
    assert set(outcomes) == {"0", "mine", "also mine"}
    assert [token.text for token in outcomes["mine"].result.tokens] == ["<bos>", " Rome"]
    assert all(outcome.error is None for outcome in outcomes.values())


def test_reproducible_answers_are_asked_for(stream, server, engine):
    stream(server.address, [PROMPT], reproducible=True)
    stream(server.address, [PROMPT])
    assert [task.reproducible for task in tasks(engine)] == [True, False]


def test_a_completion_is_answered_token_by_token(stream, server):
    """In order, each token as an answer of its own, between the answers of other items."""
    items = [("three", AttributeRequest(prompt=PROMPT, completion=(3, 1, 2))), ("one", PROMPT), ("bad", "")]
    outcomes = {key: [] for key, _ in items}
    for outcome in stream(server.address, items, each_token=True):
        outcomes[outcome.key].append(outcome)
    (whole,) = stream(server.address, items[:1])
    assert [each.remaining for each in outcomes["three"]] == [2, 1, 0]
    for part, explanation in zip(outcomes["three"], whole.result.explanations, strict=True):
        assert [each.position for each in part.result.explanations] == [explanation.position]
        assert part.result.tokens == whole.result.tokens
    assert [each.remaining for each in outcomes["one"] + outcomes["bad"]] == [0, 0]
    assert isinstance(outcomes["bad"][0].error, InvalidArgumentError)


def test_an_empty_stream_has_no_answers(stream, server):
    assert stream(server.address, []) == []


def test_a_failing_item_fails_alone_with_the_details_its_call_would_have(stream, server):
    bad = AttributeRequest(prompt=PROMPT, target=" Parisian")
    items = [("a", PROMPT), ("bad", bad), ("no", " refuse"), ("surrogate", "\ud800"), ("z", " Rome")]
    outcomes = {outcome.key: outcome for outcome in stream(server.address, items)}
    assert outcomes["a"].result.explanations
    assert outcomes["z"].result.explanations
    with pytest.raises(InvalidArgumentError) as unary, Client(server.address) as client:
        client.attribute(PROMPT, target=" Parisian")
    assert type(outcomes["bad"].error) is InvalidArgumentError
    assert vars(outcomes["bad"].error) == vars(unary.value)
    assert isinstance(outcomes["no"].error, FailedPreconditionError)
    assert outcomes["surrogate"].error.violations[0].field == "prompt.text"


def test_an_internal_error_of_an_item_is_its_request_id_and_nothing_else(server, caplog):
    call = server.stub.AttributeStream(iter([item("k", " crash")]), metadata=[("x-request-id", "id-9")])
    [answer] = call
    assert (answer.error.code, answer.error.reason) == (grpc.StatusCode.INTERNAL.value[0], "INTERNAL")
    assert "id-9" in answer.error.message
    assert b"secret" not in answer.SerializeToString()
    assert "a secret of the engine" in caplog.text
    assert dict(call.trailing_metadata())["x-request-id"] == "id-9"
    assert server.attribute().explanations


def test_answers_come_as_they_finish(server, engine):
    """An item behind one that runs is refused at once: its answer comes first."""
    engine.hold()
    answers = iter(server.stub.AttributeStream(iter([item("slow"), item("refused", "")]), timeout=PATIENCE))
    assert next(answers).key == "refused"
    engine.released.set()
    assert [answer.key for answer in answers] == ["slow"]


def test_items_are_answered_while_the_stream_is_open(server):
    items = SimpleQueue()
    answers = server.stub.AttributeStream(iter(items.get, None), timeout=PATIENCE)
    for key in "abc":
        items.put(item(key))
        assert next(answers).key == key
    items.put(None)
    assert list(answers) == []


def test_nothing_more_is_read_while_the_window_is_full():
    """Four items are taken; the next is read when the first of them is answered."""
    with running_server(ThreadWorker(engine := FakeEngine()), stream_window=4, cache_bytes=0) as server, engine:
        assert server.loaded.wait(PATIENCE)
        engine.batches.clear()
        engine.hold()
        answers = server.stub.AttributeStream((item(str(n), "x" * n) for n in range(1, 31)), timeout=PATIENCE)
        assert engine.started.wait(PATIENCE)
        server.stub.Attribute.future(attribution(), timeout=0.5).exception()  # by now, more would have been read
        assert len(tasks(engine)) <= 4
        engine.released.set()
        assert sorted(int(answer.key) for answer in answers) == list(range(1, 31))
        assert max(len(batch) for batch in engine.batches) <= 4


def test_a_caller_that_does_not_read_its_answers_is_not_worked_for():
    """Unread answers fill the connection first (64 KiB and what grows it), so the items are many and answers large."""
    settings = {"stream_window": 4, "maximum_key_bytes": 200_000}
    with running_server(ThreadWorker(engine := FakeEngine()), **settings) as server, engine:
        assert server.loaded.wait(PATIENCE)
        read = []
        items = (read.append(n) or item(f"{n}" + "k" * 100_000) for n in range(2000))
        answers = server.stub.AttributeStream(items, timeout=PATIENCE)
        next(answers)
        seen = -1
        while seen != (seen := len(read)):
            time.sleep(1)
        assert seen < 1000
        answers.cancel()


def test_a_full_queue_is_waited_out():
    """Twelve items and one place in the queue: none of them fails."""
    settings = {"queued_requests": 1, "batch_requests": 1, "cache_bytes": 0}
    with running_server(ThreadWorker(engine := FakeEngine()), **settings) as server, engine:
        assert server.loaded.wait(PATIENCE)
        outcomes = stream_directly(server.address, [PROMPT] * 12)
        assert [outcome.error for outcome in outcomes] == [None] * 12


def test_a_full_queue_is_waited_out_up_to_the_deadline(stream):
    with running_server(ThreadWorker(engine := FakeEngine()), queued_requests=1) as server, engine:
        assert server.loaded.wait(PATIENCE)
        engine.hold()
        with pytest.raises(DeadlineExceededError):
            stream(server.address, [PROMPT, " Rome", " is"], timeout=0.7)
        engine.released.set()
        assert server.attribute().explanations


class RestartingWorker(ThreadWorker):
    """Is not live, as a worker that is being restarted; once something was refused for that, its batches go on."""

    refusals = 0

    @property
    def is_live(self):
        self.refusals += 1
        self._engine.released.set()
        return False


def test_a_restarting_worker_with_a_full_queue_is_waited_for(monkeypatch):
    monkeypatch.setattr(scheduler, "_RESTART_RETRY", 0.1)
    worker = RestartingWorker(engine := FakeEngine())
    with running_server(worker, queued_requests=1, batch_requests=1, cache_bytes=0) as server, engine:
        assert server.loaded.wait(PATIENCE)
        worker.refusals = 0
        engine.hold()
        outcomes = stream_directly(server.address, [PROMPT] * 12)
        assert [outcome.error for outcome in outcomes] == [None] * 12
        assert worker.refusals


def test_what_workers_die_of_is_not_attempted_again():
    attempts = []

    async def attempt():
        attempts.append(1)
        raise UnavailableError("the worker died twice", reason="WORKER_DIED")

    with pytest.raises(UnavailableError):
        asyncio.run(retry(attempt, None))
    assert len(attempts) == 1


@pytest.mark.parametrize("ending", ["cancel", "deadline", "disconnect"])
def test_what_nobody_waits_for_any_more_leaves_the_queue(server, engine, ending, caplog):
    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = type(server)(server.address, channel, server.loaded).stub
        limit = 0.5 if ending == "deadline" else PATIENCE
        endless = threading.Event()
        call = stub.AttributeStream(_until(endless, [item("a", " Rome"), item("b", "")]), timeout=limit)
        assert next(call).key == "b", "by now the other one waits in the queue"
        if ending == "cancel":
            call.cancel()
        if ending == "deadline":
            error, _ = failure(lambda: next(call))
            assert isinstance(error, DeadlineExceededError)
        endless.set()
    failure(lambda: server.stub.Attribute(attribution(" is"), timeout=0.5))  # by now the end has arrived
    engine.released.set()
    assert first.result().explanations
    assert server.attribute().explanations
    assert " Rome" not in [TOKENIZER.text(task.token_ids[-1]) for task in tasks(engine)]
    assert not caplog.records, "a caller that leaves is no error"


def _until(end, items):
    yield from items
    end.wait(PATIENCE)


def test_closing_the_iterator_cancels_the_call(server, engine):
    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    with Client(server.address) as client:
        outcomes = client.attribute_stream([AttributeRequest(prompt=" is", target="xyz"), " Rome"])
        assert isinstance(next(outcomes).error, InvalidArgumentError)
        outcomes.close()
        failure(lambda: server.stub.Attribute(attribution(" is"), timeout=0.5))  # by now the cancellation has arrived
    engine.released.set()
    assert first.result().explanations
    assert " Rome" not in [TOKENIZER.text(task.token_ids[-1]) for task in tasks(engine)]


def test_closing_the_asynchronous_iterator_cancels_the_call(server, engine):
    async def run():
        async with AsyncClient(server.address) as client:
            outcomes = client.attribute_stream([AttributeRequest(prompt=" is", target="xyz"), " Rome"])
            assert isinstance((await anext(outcomes)).error, InvalidArgumentError)
            await outcomes.aclose()
            await asyncio.sleep(0.5)

    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    asyncio.run(run())
    engine.released.set()
    assert first.result().explanations
    assert " Rome" not in [TOKENIZER.text(task.token_ids[-1]) for task in tasks(engine)]


def test_items_are_not_taken_far_ahead_of_the_outcomes(server, engine):
    taken = []
    with Client(server.address) as client:
        outcomes = client.attribute_stream(taken.append(n) or " is" * (1 + n % 9) for n in range(4 * READ_AHEAD))
        next(outcomes)
        time.sleep(1)
        assert len(taken) <= READ_AHEAD + 2
        assert sum(1 for _ in outcomes) == 4 * READ_AHEAD - 1


def test_an_error_of_the_items_is_raised_behind_the_outcomes(stream, server):
    answered = []

    def failing():
        yield PROMPT
        raise OSError("the corpus cannot be read")

    with pytest.raises(OSError, match="the corpus cannot be read"):
        answered += stream(server.address, failing())


def test_a_malformed_item_ends_the_stream(server):
    call = server.channel.stream_stream("/neuron_attribution.v1.NeuronAttributionService/AttributeStream")
    error, status = failure(lambda: list(call(iter([b"\xff\xff"]), timeout=PATIENCE)))
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "MALFORMED_MESSAGE"


def test_a_stream_is_refused_while_the_model_is_loading(engine):
    engine.loadable.clear()
    with running_server(ThreadWorker(engine)) as server, engine:
        error, _ = failure(lambda: list(server.stub.AttributeStream(iter([item("a")]), timeout=PATIENCE)))
        assert isinstance(error, UnavailableError)
        assert error.reason == "MODEL_LOADING"
        engine.loadable.set()
        assert server.loaded.wait(PATIENCE)


def test_a_large_stream_keeps_every_key(stream, server):
    keys = [f"{number:05}" for number in range(500)]
    outcomes = stream(server.address, [(key, " is" * (1 + number % 50)) for number, key in enumerate(keys)])
    assert sorted(outcome.key for outcome in outcomes) == keys
    assert not [outcome for outcome in outcomes if isinstance(outcome.error, InternalError)]
    assert all(len(outcome.result.tokens) == 2 + int(outcome.key) % 50 for outcome in outcomes)
