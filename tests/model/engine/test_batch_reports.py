"""What a worker reports of a batch agrees with the answers that leave it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from neuron_attribution.requests import AttributeOptions, Direction, Part, ScoringMethod
from neuron_attribution.results import Coverage, NeuronRanking
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.answers import PackedAttribution
from neuron_attribution_server.tasks.reports import BatchReport, RankingCounts, gpu_memory
from neuron_attribution_server.tasks.running import run_batch
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from reference.compared import Compared
from reference.tiny_models import tiny_llama

TASK = AttributeTask(
    token_ids=(3, 1, 4, 1, 5),
    explained=(ExplainedToken(2, 7), ExplainedToken(4)),
    options=AttributeOptions(direction=Direction.BOTH),
)


def _report(tiny: Compared, *tasks: AttributeTask) -> tuple[BatchReport, list[messages.AttributeResponse]]:
    report = BatchReport()
    answers = run_batch(tiny.engine, tasks, report)
    assert all(isinstance(answer, PackedAttribution) for answer in answers)
    return report, [messages.AttributeResponse.FromString(answer.response) for answer in answers]


def test_neurons_are_those_of_the_rankings_that_are_sent(tiny: Compared) -> None:
    report, responses = _report(tiny, TASK, replace(TASK, token_ids=(9, 2, 6), explained=(ExplainedToken(1),)))
    explanations = [explanation for response in responses for explanation in response.explanations]
    assert report.explained_tokens == len(explanations) == 3
    assert report.device == "cpu"
    for counts, part in ((report.ffn, "ffn_value_neurons"), (report.attention, "attention_value_neurons")):
        coverages = [getattr(each, field).coverage for each in explanations for field in (part, f"{part}_decreasing")]
        assert counts.existing == sum(each.neurons for each in coverages) > 0
        assert counts.bounded == sum(each.bounded for each in coverages)
        assert 0 < counts.scored == sum(each.scored for each in coverages)
        assert counts.inexact == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_memory_of_a_gpu_is_reported() -> None:
    report = BatchReport()
    run_batch(engine_from(tiny_llama().to("cuda")), [TASK], report)
    assert report.device == "cuda:0"
    assert report.gpu_memory is not None
    assert 0 < report.gpu_memory.allocated <= report.gpu_memory.reserved < report.gpu_memory.total


def test_without_a_gpu_no_memory_is_reported() -> None:
    assert gpu_memory("cpu") is None
    assert torch.cuda.is_initialized() or gpu_memory("cuda:0") is None


def test_an_inexact_ranking_is_counted() -> None:
    counts = RankingCounts()
    for ranking in (NeuronRanking((), Coverage(10, 9, 3, exact)) for exact in (True, False)):
        counts.add(ranking)
    counts.add(None)
    assert counts == RankingCounts(existing=20, bounded=18, scored=6, inexact=1)


@pytest.mark.parametrize(
    "options",
    [
        AttributeOptions(),
        AttributeOptions(direction=Direction.BOTH, exhaustive=True),
        AttributeOptions(scoring_method=ScoringMethod.LOG_PROBABILITY),
        *(AttributeOptions(scoring_method=method) for method in list(ScoringMethod)[-2:]),
    ],
    ids=lambda options: f"{options.scoring_method.value} {options.direction.value}",
)
def test_bounding_and_exact_scoring_are_parts_of_scoring(tiny: Compared, options: AttributeOptions) -> None:
    before = time.time()
    report, _ = _report(tiny, replace(TASK, options=options))
    (done,) = report.passes
    assert before <= done.started <= time.time()
    assert done.forward > 0
    assert done.bound > 0
    assert done.exact > 0
    assert done.bound + done.exact < done.scoring


def test_without_rankings_nothing_is_bounded(tiny: Compared) -> None:
    report, _ = _report(tiny, replace(TASK, options=AttributeOptions(parts=frozenset({Part.LAYERS}))))
    (done,) = report.passes
    assert (done.bound, done.exact) == (0, 0)
    assert report.ffn == report.attention == RankingCounts()
