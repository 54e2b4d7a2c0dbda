"""What tasks are predicted to take: counted, priced by measurement, corrected, and bounded with advice that holds."""

import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import Aggregate, AttributeOptions, Direction, Intervention, Part, ScoringMethod
from neuron_attribution.results import ModelSizes
from neuron_attribution.traces import SCREENED_PER_NODE, TraceOptions
from neuron_attribution_server.front_end.service.too_long import check_seconds
from neuron_attribution_server.model.process import calibration
from neuron_attribution_server.model.process.calibration import measured_work
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.model_facts import WorkPrices
from neuron_attribution_server.tasks.tasks import (
    AttributeTask,
    ExplainedToken,
    InterveneTask,
    ProjectTask,
    TraceTask,
    generated_at_once,
)
from neuron_attribution_server.tasks.work import SPARE_CANDIDATES, Work, work_of
from neuron_attribution_server.tasks.work_prices import Sample, WorkPredictor, measured_prices
from service.fakes import FACTS, SIZES, FakeEngine

DEMO = ModelSizes(
    layers=30, heads=9, key_value_heads=3, head_size=64, ffn_width=1536, hidden_size=576, vocabulary=49152
)
PRICES = {kind.name: 10.0 ** -(1 + number % 5) for number, kind in enumerate(Work)}
"""Seconds of each kind of work, as different as they are on real devices."""


def attribution(tokens=5, rows=1, generate=0, contrast=None, **options):
    explained = () if generate else tuple(map(ExplainedToken, range(tokens - rows, tokens)))
    asked = AttributeOptions(**options)
    return AttributeTask(
        token_ids=(1,) * tokens, explained=explained, generate=generate, contrast=contrast, options=asked
    )


OPTIONS = st.fixed_dictionaries(
    {
        "parts": st.frozensets(st.sampled_from(Part), min_size=1),
        "top_k": st.integers(1, 1000),
        "direction": st.sampled_from(Direction),
        "scoring_method": st.sampled_from(ScoringMethod),
        "projection_top_k": st.integers(0, 1000),
        "query_sources": st.integers(1, 1000),
        "exhaustive": st.booleans(),
        "position_projection_top_k": st.integers(0, 10),
        "head_top_k": st.integers(0, 1000),
    }
)
TOGETHER = st.fixed_dictionaries({"aggregate": st.sampled_from(Aggregate), "aggregate_only": st.booleans()})
ATTRIBUTIONS = st.one_of(
    st.builds(
        lambda more, rows, other, options, together: replace(
            attribution(rows + more, rows, **{**options, **together, "exhaustive": False}),
            contrast_answer=(1,) * other,
        ),
        st.integers(0, 300),
        st.integers(1, 100),
        st.integers(0, 100),
        OPTIONS,
        TOGETHER,
    ),
    st.builds(
        lambda more, rows, options: attribution(rows + more, rows, **options),
        st.integers(0, 300),
        st.integers(1, 100),
        OPTIONS,
    ),
    st.builds(
        lambda tokens, count, options: attribution(tokens, generate=count, **options),
        st.integers(1, 300),
        st.integers(1, 100),
        OPTIONS,
    ),
)
INTERVENTIONS = st.builds(
    lambda tokens, sets, generate: InterveneTask(
        token_ids=(1,) * tokens, sets=((Intervention(neurons=(FfnNeuron(0, 1),)),),) * sets, generate=generate
    ),
    st.integers(1, 300),
    st.integers(1, 32),
    st.integers(0, 100),
)
PROJECTIONS = st.builds(
    lambda neurons, top_k: ProjectTask(neurons=(FfnNeuron(0, 1),) * neurons, top_k=top_k),
    st.integers(1, 1000),
    st.integers(1, 1000),
)
TRACES = st.builds(
    lambda more, rows, nodes, further, measure, in_prompt: TraceTask(
        token_ids=(1,) * (rows + more),
        explained=tuple(map(ExplainedToken, range(more, rows + more))),
        options=TraceOptions(nodes=nodes, screened=nodes + further if measure else None, measure=measure),
        in_prompt=in_prompt,
    ),
    st.integers(1, 300),
    st.integers(1, 100),
    st.integers(1, 500),
    st.integers(0, 3500),
    st.booleans(),
    st.booleans(),
)
TASKS = st.one_of(ATTRIBUTIONS, INTERVENTIONS, PROJECTIONS, TRACES)


def predictor():
    return WorkPredictor(WorkPrices(PRICES), DEMO)


def test_prices_are_found_again_from_samples_of_their_work():
    """Samples that tell the kinds of work apart; a price nobody sampled stays what the model's sizes make of it."""
    tasks = [
        attribution(8, parts=frozenset({Part.LAYERS})),
        attribution(800, parts=frozenset({Part.LAYERS})),
        attribution(90, 80, parts=frozenset({Part.LAYERS})),
        ProjectTask(neurons=(FfnNeuron(0, 1),) * 500, top_k=1),
        ProjectTask(neurons=(FfnNeuron(0, 1),) * 5, top_k=1000),
    ]
    truth = WorkPredictor(
        WorkPrices({"BATCH": 0.02, "TOKEN": 2e-3, "VECTOR": 4e-4, "PROJECTION": 5e-4, "WRITTEN": 9e-6}), DEMO
    )
    samples = [Sample(work_of([task], DEMO), truth.seconds([task])) for task in tasks]
    found = WorkPredictor(measured_prices(DEMO, samples), DEMO)
    for task in tasks:
        assert found.seconds([task]) == pytest.approx(truth.seconds([task]), rel=0.15)


def test_a_wrong_prediction_is_corrected_by_what_batches_take():
    wrong, tasks = predictor(), [attribution(50, 3), attribution(5), ProjectTask(neurons=(FfnNeuron(0, 1),) * 40)]
    truth = {id(task): 7 * wrong.seconds([task]) for task in tasks}
    for _ in range(300):
        for task in tasks:
            wrong.learn([task], truth[id(task)])
    for task in tasks:
        assert wrong.seconds([task]) == pytest.approx(truth[id(task)], rel=0.1)


def test_the_worst_follows_what_scored_vectors_take():
    """No short task ranks every vector: were only what ran corrected, prices of a busy time would refuse for ever."""
    learning, task = WorkPredictor(WorkPrices({"VECTOR": 1e-3, "RANK": 1e-3}), DEMO), attribution(5)
    worst = attribution(5, scoring_method=ScoringMethod.RECIPROCAL_RANK, parts=frozenset({Part.FFN_VALUE_NEURONS}))
    before, truth = learning.most_seconds([worst]), learning.seconds([task]) / 5
    for _ in range(100):
        learning.learn([task], truth)
    assert learning.most_seconds([worst]) == pytest.approx(before / 5, rel=0.05)


def test_one_batch_on_a_busy_machine_changes_little():
    learning, task = predictor(), attribution(50, 3)
    before = learning.seconds([task])
    learning.learn([task], 1e6)
    assert before < learning.seconds([task]) < 1.5 * before


@given(TASKS)
@example(InterveneTask(token_ids=(1,) * 156, sets=((Intervention(neurons=(FfnNeuron(0, 1),)),),), generate=100))
def test_asking_for_more_is_never_predicted_to_take_less(task):
    seconds = predictor().seconds([task])
    assert seconds > 0
    for more in larger(task):
        assert predictor().seconds([more]) >= seconds * (1 - 1e-9)


def larger(task):
    match task:
        case AttributeTask():
            longer = tuple(replace(token, position=token.position + 1) for token in task.explained)
            yield replace(task, token_ids=(*task.token_ids, 1), explained=longer)
            for field in ("top_k", "projection_top_k", "query_sources", "head_top_k"):
                yield replace(task, options=replace(task.options, **{field: getattr(task.options, field) + 1}))
        case InterveneTask():
            yield replace(task, sets=(*task.sets, task.sets[0]))
            further = replace(task, generate=task.generate + 1)
            if generated_at_once(further.length) == generated_at_once(task.length):  # else no places are left empty
                yield further
        case TraceTask():
            longer = tuple(replace(token, position=token.position + 1) for token in task.explained)
            yield replace(task, token_ids=(*task.token_ids, 1), explained=longer)
            for field in ("nodes", "projection_top_k", *(["screened"] if task.options.measure else [])):
                yield replace(task, options=replace(task.options, **{field: getattr(task.options, field) + 1}))
        case ProjectTask():
            yield replace(task, neurons=(*task.neurons, FfnNeuron(0, 2)))


@given(st.lists(TASKS, min_size=1, max_size=5))
def test_a_batch_is_predicted_to_take_no_more_than_its_tasks_one_by_one(tasks):
    """Padding apart, which batches keep within bounds: here all sequences are as long as the longest."""
    longest = max(getattr(task, "length", 1) for task in tasks)
    alike = [task for task in tasks if isinstance(task, ProjectTask) or task.length == longest]
    alone = sum(predictor().seconds([task]) for task in alike)
    assert predictor().seconds(alike) <= alone * (1 + 1e-9)


def test_attention_patterns_are_priced_by_what_is_written():
    """Of each explained token the weights of every head on every position."""
    options = {"parts": frozenset({Part.ATTENTION_PATTERNS})}
    assert work_of([attribution(50, 3, **options)], DEMO)[Work.PATTERN] == 3 * 30 * 9 * 50
    assert work_of([attribution(50, 3)], DEMO).get(Work.PATTERN, 0) == 0
    assert measured_work(FakeEngine()).seconds["PATTERN"] > 0


def test_decreases_by_given_scales_are_dearer():
    """The bounds of decreases grow with the square of what a smaller scale makes of every logit."""

    def vectors(direction, *scales):
        task = attribution(50, parts=frozenset({Part.FFN_VALUE_NEURONS}), direction=direction, final_norm_scales=scales)
        return work_of([task], DEMO)[Work.VECTOR]

    assert vectors(Direction.DECREASE, 2.0) > vectors(Direction.DECREASE)
    assert vectors(Direction.INCREASE, 2.0) == vectors(Direction.INCREASE)


def test_tokens_together_are_priced_by_what_their_sums_take():
    """Of each neuron that is scored, and of each head, something for every token; alone, nothing but that."""
    plain = attribution(50, 10)
    beside = attribution(50, 10, aggregate=Aggregate.SUM)
    alone = attribution(50, 10, aggregate=Aggregate.SUM, aggregate_only=True)
    counts = [work_of([task], DEMO) for task in (plain, beside, alone)]
    for kind in (Work.VECTOR, Work.POSITION, Work.BOUND):
        assert counts[0][kind] < counts[1][kind] > counts[2][kind]
    scored = 2 * (10 + SPARE_CANDIDATES)
    assert counts[1][Work.VECTOR] - counts[0][Work.VECTOR] == scored
    assert counts[1][Work.MULTIPLE] == counts[2][Work.MULTIPLE] == 9 * scored + 9 * 10 * 50 // 2
    assert counts[2][Work.PROJECTION] == 2 * 10
    contrasted = replace(alone, contrast_answer=(1,) * 10)
    assert work_of([contrasted], DEMO)[Work.TOKEN] == 2 * 51  # those of the longer one, twice
    assert work_of([contrasted], DEMO)[Work.VECTOR] > 1.9 * counts[2][Work.VECTOR]


def test_traces_are_priced_by_what_they_run_again_and_sweep():
    """Reruns by their tokens, in two layers of five; sweeps by nodes; and both are held a few at a time."""
    task = TraceTask(token_ids=(1,) * 12, explained=(ExplainedToken(11),), options=TraceOptions(nodes=100))
    counts, alone = work_of([task], DEMO), replace(task, options=replace(task.options, measure=False))
    unmeasured = work_of([alone], DEMO)
    assert counts[Work.TOKEN] - unmeasured[Work.TOKEN] == 2 * 400 * 12 // 5
    assert counts[Work.SWEEP] == unmeasured[Work.SWEEP] == 12 * 52
    assert counts[Work.VECTOR] - unmeasured[Work.VECTOR] == 400
    memory = MemoryCost(available=0, traced=1000, per_traced_token=100, per_traced_pair=10, per_rerun_token=1)
    assert memory.batch([task, task, alone]) == 1000 + 12 * 100 + 144 * 10 + 12 * (512 // 12)
    assert memory.batch([alone]) == 1000 + 12 * 100 + 144 * 10


def test_tokens_together_are_in_memory_together():
    """However few are scored at once elsewhere."""
    cost = MemoryCost(available=0, per_row=1000, rows_at_once=4)
    plain, together = attribution(50, 30), attribution(50, 30, aggregate=Aggregate.SUM)
    assert [cost.batch(tasks) for tasks in ([plain], [together], [plain, together])] == [4000, 30_000, 30_000]


def test_no_more_heads_are_charged_than_there_are():
    many, all_of_them = (attribution(50, head_top_k=count, position_projection_top_k=3) for count in (1000, 270))
    assert work_of([many], DEMO) == work_of([all_of_them], DEMO)
    cost = replace(FACTS.memory, per_head_position=10, per_projected_token=1, heads=270)
    assert cost.batch([many]) == cost.batch([all_of_them])


@given(TASKS, st.floats(0.05, 1.5))
def test_advice_is_about_a_field_and_holds(task, part):
    """What the refusal tells the caller to do makes a request that is not refused."""
    prices = predictor()
    limit = part * prices.most_seconds([task])
    if part >= 1:
        check_seconds(task, prices, limit)
        return
    with pytest.raises(InvalidArgumentError) as refused:
        check_seconds(task, prices, limit)
    assert refused.value.reason == "TAKES_TOO_LONG"
    [violation] = refused.value.violations
    advised = re.search(r"at most (\d+)|set it to false", violation.description)
    if advised is not None:
        check_seconds(heeding(task, violation.field, int(advised[1] or 0)), prices, limit)


def heeding_of_trace(task, field, value):
    options = task.options
    match field:
        case "span":
            return replace(task, explained=task.explained[:value])
        case "completion":
            ids = task.token_ids[: len(task.token_ids) - len(task.explained) + value]
            return replace(task, explained=task.explained[:value], token_ids=ids)
        case "nodes":
            screened = SCREENED_PER_NODE * value if options.measure else None
            lower = {"nodes": value, "screened": screened}
        case "screened":
            assert value >= options.nodes, "fewer would be refused"
            lower = {"screened": value}
        case "measure":
            lower = {"measure": False, "screened": None}
    return replace(task, options=replace(options, **lower))


def heeding(task, field, value):
    match field:
        case _ if isinstance(task, TraceTask):
            return heeding_of_trace(task, field, value)
        case "completion":
            start = len(task.explained) - value
            return replace(
                task,
                explained=task.explained[:value],
                token_ids=task.token_ids[: len(task.token_ids) - start],
                contrast_answer=task.contrast_answer[:value],
            )
        case "generate":
            return replace(task, generate=value)
        case "sets" | "neurons":
            return replace(task, **{field: getattr(task, field)[:value]})
        case _ if isinstance(task, AttributeTask):
            return replace(task, options=replace(task.options, **{field: value}))
        case _:
            return replace(task, **{field: value})


def test_without_a_limit_or_prices_nothing_is_refused():
    task = attribution(300, 100)
    check_seconds(task, predictor(), 0.0)
    check_seconds(task, WorkPredictor(WorkPrices(), SIZES), 1e-6)


@given(TASKS)
def test_the_worst_is_no_less_than_what_is_predicted(task):
    assert predictor().most_seconds([task]) >= predictor().seconds([task])


def test_what_is_refused_is_what_would_take_too_long_at_its_worst():
    """Where bounds tell nothing apart every rank is computed, which takes twice as long as is predicted."""
    prices = WorkPredictor(WorkPrices({"RANK": 1e-3, "RIVAL": 5e-4}), DEMO)
    task = attribution(20, 10, scoring_method=ScoringMethod.RECIPROCAL_RANK, projection_top_k=0)
    predicted = prices.seconds([task])
    assert prices.most_seconds([task]) == pytest.approx(2 * predicted)
    check_seconds(task, prices, 2.1 * predicted)
    with pytest.raises(InvalidArgumentError) as refused:
        check_seconds(task, prices, 1.1 * predicted)
    [violation] = refused.value.violations
    assert violation.field == "completion"
    assert "explain at most 5 tokens" in violation.description


def test_a_device_that_is_too_slow_for_all_samples_has_prices_still(monkeypatch):
    """What has no price has no bound: the first task, which pays for everything's first time, may use all the time."""
    monkeypatch.setattr(calibration, "BUDGET_SECONDS", 0.0)
    assert set(measured_work(FakeEngine()).seconds) == {kind.name for kind in Work}


def test_prices_are_measured_on_an_engine_within_its_limits():
    prices = measured_work(FakeEngine()).seconds
    assert set(prices) == {kind.name for kind in Work}
    assert all(price >= 0 for price in prices.values())
