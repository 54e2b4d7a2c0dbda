"""How large answers may be: what none can hold is refused before it is computed, and there is room for the others."""

from dataclasses import replace

import grpc
import pytest
from neuron_attribution.requests import AttributeOptions, Part
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.service.task_sizes import answer_bytes, pattern_bytes
from neuron_attribution_server.front_end.transfer.exchange import ITEM_COPIES
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from service.fakes import FACTS, SIZES, FakeEngine
from service.scraping import Scrape
from service.servers import PATIENCE, attribution, failure, measured, running_server

PATTERNS = AttributeOptions(parts=frozenset({Part.ATTENTION_PATTERNS}))
A_POSITION = 4 * SIZES.layers * SIZES.heads
"""Bytes of all heads' attention weights on one position."""


class Patterned(FakeEngine):
    """Offers attention patterns, in memory without end."""

    facts = replace(FACTS, supported_parts=(*FACTS.supported_parts, Part.ATTENTION_PATTERNS), memory=MemoryCost(2**40))


def explaining(count):
    """A prompt of one token and a completion of so many: explanations of 1, 2, ... visible positions."""
    completion = messages.Completion(token_ids=messages.TokenIds(ids=range(1, 1 + count)))
    prompt = messages.Prompt(token_ids=messages.TokenIds(ids=[1]))
    return messages.AttributeRequest(prompt=prompt, completion=completion, parts=[messages.PART_ATTENTION_PATTERNS])


def test_patterns_that_no_answer_may_hold_are_refused_before_they_are_computed():
    limit = A_POSITION * sum(range(1, 16))
    with (
        Patterned() as engine,
        running_server(ThreadWorker(engine), maximum_message_bytes=limit, maximum_explained_tokens=20) as server,
    ):
        assert server.loaded.wait(PATIENCE)
        assert len(server.attribute(explaining(15)).explanations) == 15
        ran = len(engine.batches)
        error, call = failure(lambda: server.attribute(explaining(16)))
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (error.reason, error.retry_after) == ("RESPONSE_TOO_LARGE", None)
        assert f"{A_POSITION * sum(range(1, 17))} bytes" in error.message
        assert len(engine.batches) == ran


@pytest.mark.parametrize("generate", [0, 3])
def test_patterns_count_what_each_explained_token_sees(generate):
    explained = () if generate else (ExplainedToken(3), ExplainedToken(4), ExplainedToken(5))
    task = AttributeTask(
        token_ids=(1,) * (4 if generate else 6), explained=explained, generate=generate, options=PATTERNS
    )
    assert pattern_bytes(task, SIZES) == A_POSITION * (4 + 5 + 6)
    without = replace(task, options=replace(PATTERNS, parts=frozenset({Part.LAYERS})))
    assert answer_bytes(task, SIZES) - answer_bytes(without, SIZES) == A_POSITION * (4 + 5 + 6)


@pytest.mark.parametrize(("each_token", "answers"), [(False, 1), (True, 3)])
def test_as_much_room_is_held_as_all_messages_of_an_answer_may_take(each_token, answers):
    """What is computed is expected to be over the limit of one message, and each token is a message of its own."""
    request = attribution(completion=messages.Completion(text=" is" * 3), parts=[messages.PART_LAYERS])
    item = messages.AttributeStreamRequest(key="k", request=request, each_token=each_token)
    engine = FakeEngine()
    with measured(engine, maximum_message_bytes=1024) as server:
        engine.hold()
        call = server.stub.AttributeStream(iter([item]), timeout=PATIENCE)
        assert engine.started.wait(PATIENCE)
        assert Scrape(server.metrics_address).value("unread_bytes") == ITEM_COPIES * answers * 1024
        engine.released.set()
        assert len(list(call)) == answers
