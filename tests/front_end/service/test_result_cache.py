"""The cache: what counts as the same request, what is dropped, and that answers are the same."""

import gc
import tracemalloc

import pytest
from neuron_attribution.neurons import FfnNeuron, Head, QuerySource
from neuron_attribution.requests import (
    Aggregate,
    AttributeOptions,
    Direction,
    Intervention,
    LayerPart,
    Part,
    Scale,
    ScoringMethod,
    Subkey,
)
from neuron_attribution.results import ModelIdentity, Timings
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.service.result_cache import ResultCache
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.answers import PackedAttribution
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from service.fakes import PROMPT, TOKENIZER
from service.servers import PATIENCE, attribution, failure, running_server

MODEL = ModelIdentity("fake", "revision-1", "float32")


def task(first=1, **fields):
    return AttributeTask(**{"token_ids": (first, 2), "explained": (ExplainedToken(1),), **fields})


def answer(size=10_000):
    return PackedAttribution((1, 2), b"x" * size, Timings())


def test_a_second_identical_request_does_not_reach_the_engine(server, engine):
    first, second = server.attribute(), server.attribute()
    assert len(engine.batches) == 1
    assert (first.timings.cached, second.timings.cached) == (False, True)
    timings = second.timings
    assert not any(time.ToNanoseconds() for time in (timings.queue, timings.forward, timings.scoring))
    assert (timings.batch_requests, timings.batch_tokens) == (0, 0)
    assert timings.tokenization.ToNanoseconds() > 0
    first.ClearField("timings")
    second.ClearField("timings")
    assert first == second


def test_the_same_tokens_are_the_same_request_however_they_are_written(server, engine):
    ids = TOKENIZER.ids(PROMPT)
    paris = TOKENIZER.token_named(" Paris", "target")
    server.attribute(attribution(target=messages.TokenChoice(text=" Paris"), model="fake", top_k=10))
    same = server.attribute(
        messages.AttributeRequest(
            prompt=messages.Prompt(token_ids=messages.TokenIds(ids=ids)), target=messages.TokenChoice(id=paris)
        )
    )
    assert same.timings.cached
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"target": messages.TokenChoice(text=" Rome")},
        {"contrast": messages.TokenChoice(text=" Rome")},
        {"generate": 1},
        {"top_k": 9},
        {"parts": [messages.PART_LAYERS]},
        {"exhaustive": True},
        {"neurons": [messages.Neuron(ffn=messages.FfnNeuron(layer=0, index=0))]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_differing_request_is_another_one(server, engine, fields):
    server.attribute()
    assert not server.attribute(attribution(**fields)).timings.cached
    assert len(engine.batches) == 2


def test_generation_is_greedy_and_kept_as_well(server, engine):
    server.attribute(attribution(generate=2))
    assert server.attribute(attribution(generate=2)).timings.cached
    assert len(engine.batches) == 1


def test_what_is_drawn_is_kept_by_its_seed(server, engine):
    """Without one the server draws another each time."""
    for sampling in (messages.Sampling(), messages.Sampling(), messages.Sampling(seed=1)):
        assert not server.attribute(attribution(generate=2, sampling=sampling)).timings.cached
    assert server.attribute(attribution(generate=2, sampling=messages.Sampling(seed=1))).timings.cached
    seeds = [task.sampling.seed for [task] in engine.batches]
    assert len(seeds) == len(set(seeds)) == 3


def test_failures_are_not_kept(server, engine):
    for text in (" refuse", " crash"):
        for _ in range(2):
            failure(lambda text=text: server.attribute(attribution(text)))
    assert len(engine.batches) == 4


def test_a_stream_uses_the_cache_as_well(server, engine):
    server.attribute()
    items = [messages.AttributeStreamRequest(key="k", request=attribution())]
    [outcome] = server.stub.AttributeStream(iter(items), timeout=PATIENCE)
    assert outcome.response.timings.cached
    assert len(engine.batches) == 1


def test_no_bytes_mean_no_cache(engine):
    with running_server(ThreadWorker(engine), cache_bytes=0) as server, engine:
        assert server.loaded.wait(PATIENCE)
        engine.batches.clear()
        assert [server.attribute().timings.cached for _ in range(2)] == [False, False]
        assert len(engine.batches) == 2


OTHERS = {
    "parts": frozenset({Part.HEADS}),
    "top_k": 11,
    "direction": Direction.BOTH,
    "scoring_method": ScoringMethod.NORM,
    "projection_top_k": 0,
    "query_sources": 1,
    "subkey": Subkey.GATE,
    "include_final_norm_bias": True,
    "neurons": (),
    "exhaustive": True,
    "position_projection_top_k": 1,
    "head_top_k": 1,
    "attention_neurons_over_positions": True,
    "interventions": (Intervention(heads=(Head(0, 0),)),),
    "query_from": (QuerySource(FfnNeuron(0, 0)),),
    "final_norm_scales": (1.5,),
    "aggregate": Aggregate.SUM,
    "aggregate_only": True,
}


@pytest.mark.parametrize("name", sorted(AttributeOptions.__dataclass_fields__))
def test_every_option_tells_requests_apart(name):
    given = {"neurons": ("some neuron",)} if name == "neurons" else {name: OTHERS[name]}
    cache = ResultCache(100_000)
    cache.put(MODEL, task(), answer())
    assert cache.get(MODEL, task(options=AttributeOptions(**given))) is None
    assert cache.get(MODEL, task(options=AttributeOptions())) is not None


@pytest.mark.parametrize(
    "other", [ModelIdentity("fake", "revision-2", "float32"), ModelIdentity("fake", "revision-1", "float16")]
)
def test_another_revision_or_type_is_another_model(other):
    cache = ResultCache(100_000)
    cache.put(MODEL, task(), answer())
    assert cache.get(other, task()) is None


def test_the_least_recently_used_is_dropped_by_bytes():
    cache = ResultCache(40_000)
    for first in (1, 2, 3):
        cache.put(MODEL, task(first), answer())
    assert cache.get(MODEL, task(1)) is not None
    cache.put(MODEL, task(4), answer())
    assert [cache.get(MODEL, task(first)) is not None for first in (1, 2, 3, 4)] == [True, False, True, True]
    assert 30_000 <= cache.bytes <= 40_000
    cache.put(MODEL, task(5), answer(20_000))
    assert [cache.get(MODEL, task(first)) is not None for first in (1, 3, 4, 5)] == [False, False, True, True]
    assert (cache.hits, cache.misses) == (6, 3)


def test_what_is_larger_than_the_cache_drops_nothing():
    cache = ResultCache(20_000)
    cache.put(MODEL, task(1), answer())
    cache.put(MODEL, task(2), answer(20_000))
    assert cache.get(MODEL, task(1)) is not None
    assert cache.get(MODEL, task(2)) is None


def neurons(numbers):
    return tuple(FfnNeuron(1, number, number + 1) for number in numbers)


NAMING = {
    "neurons": lambda numbers: {"neurons": neurons(numbers)},
    "intervened neurons": lambda numbers: {"interventions": (Intervention(neurons=neurons(numbers)),)},
    "heads": lambda numbers: {"interventions": (Intervention(heads=tuple(Head(1, n) for n in numbers)),)},
    "parts": lambda numbers: {"interventions": (Intervention(layers=tuple(LayerPart(n, "ffn") for n in numbers)),)},
    "interventions": lambda numbers: {
        "interventions": tuple(Intervention(Scale(n / 7), heads=(Head(1, n),)) for n in numbers)
    },
}


@pytest.mark.parametrize("naming", NAMING.values(), ids=NAMING)
def test_what_a_request_names_counts(naming):
    """Not less than it takes, as Python counts it, and until it is dropped."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        large = task(options=AttributeOptions(**naming(range(1000, 2000))))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    cache = ResultCache(1_000_000)
    cache.put(MODEL, task(), answer())
    plain = cache.bytes
    cache.put(MODEL, large, answer())
    assert 100_000 > plain > 0
    assert taken <= cache.bytes - plain <= 2 * taken + 20_000
    cache.put(MODEL, task(3), answer(995_000))
    assert cache.bytes == plain + 985_000
