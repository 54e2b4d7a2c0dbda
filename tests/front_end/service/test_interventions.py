"""Interventions over the wire: how they are counted, queued and logged, and that the cache knows them."""

import logging

from neuron_attribution import Client, Head, Intervention, Scale
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.scheduling.batches import padded_tokens
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import AttributeTask, InterveneTask
from service.fakes import PROMPT, FakeEngine
from service.scraping import Scrape
from service.servers import PATIENCE, attribution, eventually, running_server

CALL = "neuron_attribution_server.front_end.calls.call_log"
HEADS = [(Intervention(heads=(Head(0, 1),)),), (Intervention(Scale(2.0), heads=(Head(1, 0),)),)]
SETS = ((Intervention(heads=(Head(0, 0),)),),) * 3
"""Three of them."""


def test_a_request_and_its_answer(server, engine):
    with Client(server.address) as client:
        result = client.intervene(PROMPT, HEADS, target=" Paris", generate=3)
    assert [token.text for token in result.tokens][1:] == ["The", " capital", " of", " France", " is"]
    assert result.before.target.token.text == " Paris"
    assert [each.kl_divergence for each in result.results] == [0.25, 0.25]
    assert (result.timings.forward, result.timings.scoring, result.timings.batch_requests) == (0.25, 0.5, 1)
    assert result.timings.tokenization > 0
    [[task]] = engine.batches
    assert task.sets == tuple(HEADS)
    assert (task.generate, task.sequences, task.tokens) == (3, 3, 3 * (6 + 3))


def test_attributions_with_other_interventions_are_other_attributions(server, engine):
    with Client(server.address) as client:
        for interventions in ((), HEADS[0], HEADS[1], HEADS[0], ()):
            client.attribute(PROMPT, interventions=interventions)
    assert [batch[0].options.interventions for batch in engine.batches] == [(), HEADS[0], HEADS[1]]


def test_interventions_wait_with_all_their_tokens():
    """Of two requests of three sequences of six tokens each, a queue of twenty tokens takes one."""
    head = messages.Intervention(zero=True, heads=[messages.Head(layer=0, head=0)])
    sets = [messages.InterventionSet(interventions=[head])] * 2
    request = messages.InterveneRequest(prompt=messages.Prompt(text=PROMPT), sets=sets)
    with FakeEngine() as engine, running_server(ThreadWorker(engine), maximum_tokens=16, queued_tokens=20) as server:
        assert server.loaded.wait(PATIENCE)
        engine.hold()
        running = server.stub.Attribute.future(attribution())
        assert engine.started.wait(PATIENCE)
        waiting = [server.stub.Intervene.future(request) for _ in range(2)]
        assert eventually(lambda: any(call.done() for call in waiting))
        [refused] = [call for call in waiting if call.done()]
        error = from_rpc_error(refused.exception(), "the server")
        assert (error.reason, "18 more tokens have no room" in error.message) == ("QUEUE_FULL", True)
        engine.released.set()
        assert running.result().explanations
        assert len([call for call in waiting if call is not refused and call.result().results]) == 1


def test_every_sequence_counts_in_batches_and_memory():
    one = InterveneTask(token_ids=(1,) * 10, sets=SETS)
    generating = InterveneTask(token_ids=(1,) * 10, sets=SETS, generate=5)
    plain = AttributeTask(token_ids=(1,) * 4)
    assert padded_tokens([one]) == 40
    assert padded_tokens([one, plain]) == 50
    memory = MemoryCost(available=1000, fixed=1, per_token=1, per_row=1000, per_row_token=2)
    states = MemoryCost(available=1000, per_sequence=1)
    assert (states.batch([one]), states.batch([generating])) == (4, 16)
    assert memory.batch([one]) == 1 + 40, "no source position is read by itself"
    assert memory.batch([plain, one]) == 1 + 50 + 2 * 4 * 10, "of an explanation they are, and of what shares its pass"
    assert memory.batch([generating]) == 1 + 16 * 15, "sixteen sequences of 15 tokens generate together"


def test_what_sets_generate_in_turn_is_counted():
    assert InterveneTask(token_ids=(1,) * 300, sets=SETS, generate=5).generated_in_turn == 15


def test_the_call_is_counted_and_logged_without_its_prompt(caplog):
    with running_server(ThreadWorker(FakeEngine()), metrics_listen="localhost:0") as server:
        assert server.loaded.wait(PATIENCE)
        with Client(server.address) as client, caplog.at_level(logging.INFO, CALL):
            client.intervene("France France", HEADS)
            assert eventually(lambda: [record for record in caplog.records if record.name == CALL])
        scrape = Scrape(server.metrics_address)
    [fields] = [record.fields for record in caplog.records if record.name == CALL]
    assert fields["method"].endswith("Intervene")
    assert fields["tokens"] == 8
    assert fields["prompt_sha256"]
    assert "France" not in caplog.text
    handled = [value for (name, *labels), value in scrape.series.items() if "handled" in name and _is_ours(labels)]
    assert handled == [1]


def _is_ours(labels):
    return {("grpc_method", "Intervene"), ("grpc_code", "OK")} <= set(labels)
