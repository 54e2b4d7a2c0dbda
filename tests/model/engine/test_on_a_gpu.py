"""What a GPU answers is what a CPU does. `make gpu` runs this where there is one; one family shows here that it can."""

from __future__ import annotations

import functools

import pytest
import torch
from neuron_attribution.requests import AttributeOptions, Direction
from neuron_attribution.results import Explanation
from neuron_attribution.traces import TraceOptions
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, TraceTask
from reference.compare import assert_close
from reference.compare_answers import VALUE_RANKINGS, assert_same
from reference.tiny_families import VOCABULARY, tiny_family
from transformers import LlamaConfig, LlamaForCausalLM

TOLERANCE = 1e-4
ROUNDED = 0.1
"""Of scores between 0.01 and 1: two devices round the states of a bfloat16 model to eight bits each in its own way."""
DENSE = ("llama", "gpt2", "gemma2", "falcon", "bloom")
EXPERTS = ("mixtral", "deepseek_v2")
"""In float32 only: a state that is rounded another way may choose another expert."""
EVERYTHING = AttributeOptions(direction=Direction.BOTH, top_k=20)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
ON_A_GPU = (pytest.mark.gpu, NO_GPU)
MODELS = [*((each, torch.float32) for each in DENSE + EXPERTS), *((each, torch.bfloat16) for each in DENSE)]
PLACES = [
    *(pytest.param("llama", dtype, "cpu", id=f"llama-{dtype}-cpu") for dtype in (torch.float32, torch.bfloat16)),
    *(pytest.param(*model, "cuda", id=f"{model[0]}-{model[1]}-cuda", marks=ON_A_GPU) for model in MODELS),
]
"""With a family on a CPU, which shows that the test itself works."""
PROMPTS = [tuple((7 * place + 11 * number) % VOCABULARY for place in range(3 + 4 * number)) for number in range(4)]


def _tasks(options: AttributeOptions = EVERYTHING) -> list[AttributeTask]:
    return [
        AttributeTask(token_ids=ids, explained=(ExplainedToken(1, 5), ExplainedToken(len(ids) - 1, 8)), options=options)
        for ids in PROMPTS
    ]


@functools.cache
def _engine(family: str, device: str, dtype: torch.dtype) -> Engine:
    return engine_from(tiny_family(family).to(device, dtype))


def _explained(engine: Engine, *tasks: AttributeTask) -> list[Explanation]:
    outcomes = engine.run(tasks)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [explanation for outcome in outcomes for explanation in outcome.explanations]


def _exact(explanation: Explanation) -> list[bool]:
    return [getattr(explanation, name).coverage.exact for name in VALUE_RANKINGS]


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("family", DENSE + EXPERTS)
def test_answers_are_the_cpus(family: str) -> None:
    got, want = (_explained(_engine(family, each, torch.float32), *_tasks()) for each in ("cuda", "cpu"))
    for one, other in zip(got, want, strict=True):
        assert_same(one, other, tolerance=TOLERANCE)
        assert _exact(one) == _exact(other)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("family", DENSE)
def test_answers_in_half_precision_are_about_the_cpus(family: str) -> None:
    got, want = (_explained(_engine(family, each, torch.bfloat16), *_tasks()) for each in ("cuda", "cpu"))
    for one, other in zip(got, want, strict=True):
        assert_close(one.target.log_probability, other.target.log_probability, "log probability", ROUNDED)
        assert_close(one.layers.attention, other.layers.attention, "attention layers", ROUNDED)
        assert_close(one.layers.ffn, other.layers.ffn, "FFN layers", ROUNDED)
        assert _exact(one) == _exact(other)


@pytest.mark.parametrize(("family", "dtype", "device"), PLACES)
def test_bounded_rankings_are_those_of_scoring_every_neuron(family: str, dtype: torch.dtype, device: str) -> None:
    """From the states of the same device, whatever they are rounded to."""
    engine = _engine(family, device, dtype)
    exhaustive = AttributeOptions(direction=Direction.BOTH, top_k=20, exhaustive=True)
    for task, other in zip(_tasks(), _tasks(exhaustive), strict=True):
        for one, every in zip(_explained(engine, task), _explained(engine, other), strict=True):
            assert_same(one, every, tolerance=TOLERANCE)
            assert all(_exact(every))


@pytest.mark.parametrize(("family", "dtype", "device"), PLACES)
def test_a_batch_is_answered_as_its_requests_alone(family: str, dtype: torch.dtype, device: str) -> None:
    engine = _engine(family, device, dtype)
    together = _explained(engine, *_tasks())
    alone = [explanation for task in _tasks() for explanation in _explained(engine, task)]
    for one, other in zip(together, alone, strict=True):
        if dtype is torch.float32:
            assert_same(one, other, tolerance=TOLERANCE)
        else:  # products of another shape round the states another way
            assert_close(one.layers.ffn, other.layers.ffn, "FFN layers", ROUNDED)
        assert _exact(one) == _exact(other)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize(("requests", "tokens"), [(1, 1024), (16, 128)])
def test_a_batch_takes_at_most_the_memory_that_was_predicted(requests: int, tokens: int) -> None:
    config = LlamaConfig(
        num_hidden_layers=8,
        hidden_size=1024,
        num_attention_heads=16,
        num_key_value_heads=16,
        intermediate_size=2752,
        vocab_size=32_000,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    engine = engine_from(LlamaForCausalLM(config).to("cuda", torch.bfloat16))
    ids = tuple(1000 + position % 977 for position in range(tokens))
    tasks = [AttributeTask(token_ids=ids, explained=(ExplainedToken(tokens - 1),))] * requests
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _explained(engine, *tasks)
    assert 0 < torch.cuda.max_memory_allocated() - before <= engine.facts.memory.batch(tasks)


@pytest.mark.parametrize(("family", "dtype", "device"), PLACES)
def test_traces_are_those_of_a_cpu(family: str, dtype: torch.dtype, device: str) -> None:
    """In float32: activations, effects, gradients, relevances and edges, by every node of either."""
    if dtype is not torch.float32:
        pytest.skip("rounded states are other prompts")
    options = TraceOptions(nodes=8, heads=True, projection_top_k=2)
    task = TraceTask(token_ids=PROMPTS[2], explained=(ExplainedToken(4, 5), ExplainedToken(9, 8)), options=options)
    graphs = []
    for place in (device, "cpu"):
        (outcome,) = _engine(family, place, dtype).run([task])
        if isinstance(outcome, Exception):
            raise outcome
        graphs.append(outcome.graph)
    got, wanted = graphs
    assert got.log_odds == pytest.approx(wanted.log_odds, abs=TOLERANCE)
    theirs = {(node.kind, node.neuron, node.position, node.layer): node for node in wanted.nodes}
    assert len(theirs) > 8
    for node in got.nodes:
        other = theirs[node.kind, node.neuron, node.position, node.layer]
        for name in ("activation", "relevance", "effect", "gradient"):
            mine, its = (getattr(each, name) or 0.0 for each in (node, other))
            assert mine == pytest.approx(its, abs=TOLERANCE, rel=TOLERANCE)
