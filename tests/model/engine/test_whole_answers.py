"""Explained tokens taken together: the sums of what explains each, and the exact top k of the summed scores.

Brute force scores every neuron at every explained token in float64 and adds. Hypothesis draws the same examples in
every run.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import Aggregate, AttributeOptions, Direction, Intervention, Part, Scale, ScoringMethod
from neuron_attribution.results import AGGREGATE_RANKINGS, AggregateExplanation, Explanation, NeuronRanking
from neuron_attribution_server.model.attribution import host
from neuron_attribution_server.model.attribution.search import ranking as bounded_ranking
from neuron_attribution_server.model.attribution.search.summed_neurons import SummedNeurons
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.engine.passes import sequences_of
from neuron_attribution_server.model.loading import models
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from reference.adversaries import TWISTS, Recipe, cook
from reference.captured_scores import CapturedPrediction, NeuronScores, captured
from reference.compare_neurons import ranking_key
from reference.compared import Compared, compare, compare_tiny

TOLERANCE = 1e-5
VALUE_PARTS = frozenset({Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS})
SIGNS = {Direction.INCREASE: (1,), Direction.DECREASE: (-1,), Direction.BOTH: (1, -1)}
A = ScoringMethod.LOG_PROBABILITY_INCREASE
FIXED = settings(derandomize=True, database=None, max_examples=examples(150), suppress_health_check=list(HealthCheck))
PROMPT, ANSWER, OTHER = (17, 4, 56, 60, 8), (3, 91, 3, 44), (7, 20, 11)


@dataclass(frozen=True)
class Case:
    """A model, an answer to a prompt, another one to contrast it with, and what is asked of them."""

    recipe: Recipe
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    other: tuple[int, ...]
    contrast: int | None
    options: AttributeOptions
    spare: int

    @property
    def task(self) -> AttributeTask:
        """What the engine is asked."""
        return task_of(self.prompt, self.answer, self.other, contrast=self.contrast, options=self.options)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Contrasts with one token or with another answer, and plain sums and means."""
    recipe = Recipe(
        family=draw(st.sampled_from(["llama", "gpt2"])),
        layers=draw(st.integers(1, 3)),
        ffn_width=draw(st.sampled_from([8, 40, 150])),
        vocabulary=draw(st.sampled_from([2, 3, 11, 60])),
        seed=draw(st.integers(0, 10_000)),
        twists=draw(st.just(()) | st.lists(st.sampled_from(sorted(TWISTS)), min_size=1, max_size=2).map(tuple)),
    )
    token = st.integers(0, recipe.vocabulary - 1)
    some = st.lists(token, min_size=1, max_size=5).map(tuple)
    answer, other = draw(some), draw(st.just(()) | some)
    contrast = None if other else draw(st.none() | token)
    options = AttributeOptions(
        parts=VALUE_PARTS,
        direction=draw(st.sampled_from(Direction)),
        top_k=draw(st.sampled_from([1, 2, 5, 20, 100, 5000])),
        projection_top_k=0,
        include_final_norm_bias=draw(st.booleans()),
        attention_neurons_over_positions=draw(st.booleans()),
        aggregate=draw(st.sampled_from(Aggregate)),
        aggregate_only=draw(st.booleans()),
    )
    spare = draw(st.sampled_from([0, bounded_ranking.SPARE]))
    return Case(recipe, draw(some), answer, () if other == answer else other, contrast, options, spare)


@FIXED
@given(cases())
def test_top_k_is_that_of_brute_force(case: Case) -> None:
    check(case, kitchen(case.recipe))


@settings(FIXED, max_examples=examples(20))
@given(cases(), st.sampled_from([torch.bfloat16, torch.float16]))
def test_weights_in_half_precision_on_a_device(case: Case, dtype: torch.dtype) -> None:
    with patch.object(host, "HOST", "none"):
        check(case, kitchen(case.recipe, dtype))


def test_a_wrong_bound_is_noticed() -> None:
    """Bounds that leave one row out bound no sum: the tests above can fail."""
    recipe = Recipe("llama", layers=2, ffn_width=150, vocabulary=60, seed=3)
    options = AttributeOptions(parts=VALUE_PARTS, top_k=5, projection_top_k=0, aggregate=Aggregate.SUM)
    case = Case(recipe, (1, 2), (9, 4, 30, 17, 5), (), None, options, 0)
    check(case, kitchen(recipe))
    right = SummedNeurons.bounds

    def wrong(neurons: SummedNeurons, *arguments: object) -> torch.Tensor:
        neurons._weights[2] = 0
        return right(neurons, *arguments)

    with patch.object(SummedNeurons, "bounds", wrong), pytest.raises(AssertionError, match="is missing"):
        check(case, kitchen(recipe))


def test_layers_are_bounded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one layer at a time."""
    llama = compare_tiny("llama")
    options = replace(every_part(Aggregate.SUM), top_k=60, aggregate_only=True)
    whole = aggregate_of(llama, task_of(PROMPT, ANSWER, options=options))
    monkeypatch.setattr("neuron_attribution_server.model.attribution.search.value_neurons.BOUNDS_AT_ONCE", 1)
    assert_alike(aggregate_of(llama, task_of(PROMPT, ANSWER, options=options)), whole)


@pytest.mark.parametrize("aggregate", list(Aggregate))
@pytest.mark.parametrize("contrast", [None, 12])
def test_sums_are_those_of_the_explanations(tiny: Compared, aggregate: Aggregate, contrast: int | None) -> None:
    """Layers, heads, positions, named neurons and every value neuron at every position."""
    options = every_part(aggregate)
    assert_sums(tiny.engine, task_of(PROMPT, ANSWER, contrast=contrast, options=options))


def test_layers_add_up_to_the_answers_log_probability(tiny: Compared) -> None:
    """From the sum at the embeddings, with all biases of the unembedding."""
    options = AttributeOptions(
        parts=frozenset({Part.LAYERS}), include_final_norm_bias=True, aggregate=Aggregate.SUM, aggregate_only=True
    )
    got = aggregate_of(tiny, task_of(PROMPT, ANSWER, options=options))
    with torch.no_grad():
        logits = tiny.model.double()(torch.tensor([PROMPT + ANSWER])).logits[0]
    tiny.model.float()
    logs = torch.log_softmax(logits, -1)[len(PROMPT) - 1 : -1].gather(1, torch.tensor(ANSWER)[:, None])[:, 0]
    wanted = float(logs.sum())
    assert got.log_probability == pytest.approx(wanted, abs=TOLERANCE)
    assert [each.log_probability for each in got.targets] == pytest.approx(logs.tolist(), abs=TOLERANCE)
    layers = got.layers
    assert layers.final_log_probability == pytest.approx(wanted, abs=4 * TOLERANCE)
    moved = float(layers.attention.sum() + layers.ffn.sum())
    assert layers.embedding_log_probability + moved + layers.remainder == pytest.approx(wanted, abs=4 * TOLERANCE)
    assert layers.remainder == pytest.approx(0, abs=4 * TOLERANCE)


@pytest.mark.parametrize("aggregate", list(Aggregate))
def test_two_answers_contrasted_are_the_difference_of_their_sums(tiny: Compared, aggregate: Aggregate) -> None:
    options = replace(every_part(aggregate), attention_neurons_over_positions=True, aggregate_only=True)
    first, second = (aggregate_of(tiny, task_of(PROMPT, ids, options=options)) for ids in (ANSWER, OTHER))
    got = aggregate_of(tiny, task_of(PROMPT, ANSWER, OTHER, options=options))
    assert_close(got.log_probability, first.log_probability)
    assert_close(got.contrast_log_probability, second.log_probability)
    assert (got.targets, got.contrast_targets) == (first.targets, second.targets)
    assert_close(got.head_scores, first.head_scores - second.head_scores)
    for name in ("attention", "ffn", "embedding_log_probability", "final_log_probability"):
        mine, one, other = (getattr(each.layers, name) for each in (got, first, second))
        assert_close(mine, one - other)
    for head in got.heads:
        one, other = (next(each for each in side.heads if each.head == head.head) for side in (first, second))
        for name in ("position_scores", "attention_weights"):
            pair = [getattr(each, name)[: len(PROMPT)] for each in (one, other)]
            assert_close(getattr(head, name), pair[0] - pair[1])
        assert_close(head.token_scores, [*one.token_scores, *other.token_scores])
    for name in ("ffn_value_neurons", "attention_value_neurons"):
        ranked, *sides = (scores_of(getattr(each, name)) for each in (got, first, second))
        assert ranked.keys() == sides[0].keys() == sides[1].keys()
        assert_close(list(ranked.values()), [sides[0][key] - sides[1][key] for key in ranked])


def test_a_contrast_leaves_the_answers_own_explanations(tiny: Compared) -> None:
    options = replace(every_part(Aggregate.SUM), top_k=5)
    (outcome,) = tiny.engine.run([task_of(PROMPT, ANSWER, OTHER, options=options)])
    plain = tiny.explain(task_of(PROMPT, ANSWER, options=replace(options, aggregate=None)))
    assert outcome.token_ids == PROMPT + ANSWER
    for got, want in zip(outcome.explanations, plain, strict=True):
        assert_alike(got, want)


def test_batched_equals_single(tiny: Compared) -> None:
    """Beside other requests, in groups of two rows, and with explanations or without."""
    options = replace(every_part(Aggregate.SUM), top_k=20, direction=Direction.BOTH)
    tasks = [
        task_of(PROMPT, ANSWER, options=options),
        task_of((5, 5), OTHER, options=replace(options, aggregate=None)),
        task_of((9, 1, 80), ANSWER, OTHER, options=replace(options, aggregate_only=True)),
        AttributeTask(token_ids=(4, 8, 15), generate=3, options=options),
        task_of(PROMPT, ANSWER, contrast=2, options=replace(options, aggregate=Aggregate.MEAN)),
    ]
    for together in (2, 100):
        with patch("neuron_attribution_server.model.engine.engine.rows_at_once", lambda _sizes, n=together: n):
            batched = tiny.engine.run(tasks)
        for task, outcome in zip(tasks, batched, strict=True):
            (alone,) = tiny.engine.run([task])
            assert (outcome.aggregate is None) == (task.options.aggregate is None)
            if outcome.aggregate is not None:
                assert_alike(outcome.aggregate, alone.aggregate)
            assert len(outcome.explanations) == task.explanations
            for got, want in zip(outcome.explanations, alone.explanations, strict=True):
                assert_alike(got, want)


def test_reproducible_answers_do_not_depend_on_their_batch(tiny: Compared) -> None:
    options = replace(every_part(Aggregate.SUM), top_k=20)
    task = replace(task_of(PROMPT, ANSWER, options=options), reproducible=True)
    (alone,) = tiny.engine.run([task])
    beside = tiny.engine.run([task_of(PROMPT, OTHER, options=options), task, replace(task, reproducible=False)])[1]
    assert_alike(beside.aggregate, alone.aggregate, tolerance=0.0)


def test_interventions_are_summed_as_they_are_explained(tiny: Compared) -> None:
    """A head turned around, which makes attention weights negative, and an FFN neuron doubled."""
    changes = (Intervention(Scale(-1.5), heads=(Head(1, 2),)), Intervention(Scale(2), neurons=(FfnNeuron(0, 3),)))
    assert_sums(tiny.engine, task_of(PROMPT, ANSWER, options=replace(every_part(Aggregate.SUM), interventions=changes)))


def test_tokens_of_the_prompt_are_explained(tiny: Compared) -> None:
    """As a completion of what is before them; what follows changes nothing."""
    options = replace(every_part(Aggregate.SUM), top_k=20)
    explained = tuple(ExplainedToken(place - 1, PROMPT[place]) for place in (2, 3))
    (got,) = tiny.engine.run([AttributeTask(token_ids=PROMPT, explained=explained, in_prompt=True, options=options)])
    (want,) = tiny.engine.run([task_of(PROMPT[:2], PROMPT[2:4], options=options)])
    assert_alike(got.aggregate, want.aggregate)
    assert got.token_ids == PROMPT


def check(case: Case, compared: Compared) -> None:
    """Both kinds, each end that is asked for, against brute force over the states that the engine captures."""
    with patch.object(bounded_ranking, "SPARE", case.spare):
        got = aggregate_of(compared, case.task)
    whole = case.options.attention_neurons_over_positions or bool(case.other)
    for field, kind in (
        ("ffn_value_neurons", "ffn"),
        ("attention_value_neurons", "whole_attention" if whole else "attention"),
    ):
        scores = brute_force(compared, case, kind)
        for sign in SIGNS[case.options.direction]:
            assert_top_k(getattr(got, field if sign > 0 else f"{field}_decreasing"), scores, case.options.top_k, sign)


def brute_force(compared: Compared, case: Case, kind: str) -> NeuronScores:
    """The weighted sums of every neuron's scores, and how far float32 may move them."""
    sums: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
    sequences = sequences_of(case.task)
    ids = [each.token_ids for each in sequences]
    rows = captured(compared, ids, [each.positions for each in sequences])
    for row, token in zip(rows, case.answer + case.other, strict=True):
        count = len(case.other if row.sequence else case.answer)
        weight = (-1 if row.sequence else 1) / (count if case.options.aggregate is Aggregate.MEAN else 1)
        include_bias = case.options.include_final_norm_bias
        prediction = CapturedPrediction(compared, ids[row.sequence], token, case.contrast, include_bias, row)
        for key, (score, rounding) in getattr(prediction, kind)(A).items():
            sums[key][0] += weight * score
            sums[key][1] += abs(weight) * rounding
    return {key: (total, rounding) for key, (total, rounding) in sums.items()}


def assert_top_k(ranking: NeuronRanking, scores: NeuronScores, top_k: int, sign: int) -> None:
    """Only scores closer than rounding may change places; the coverage is the truth."""
    keys = [ranking_key(entry) for entry in ranking.neurons]
    coverage = ranking.coverage
    count = min(top_k, len(scores))
    assert len(keys) == len(set(keys)) == count
    got = [sign * entry.score for entry in ranking.neurons]
    assert got == sorted(got, reverse=True)
    tolerance = TOLERANCE * max(1.0, *(abs(scores[key][0]) for key in keys))
    for key, mine in zip(keys, got, strict=True):
        score, rounding = scores[key]
        assert abs(mine - sign * score) <= tolerance + rounding, f"the score of {key}"
    for key, (score, rounding) in scores.items():
        assert key in keys or sign * score <= got[-1] + tolerance + rounding, f"{key} is missing"
    assert coverage.exact
    assert count <= coverage.scored <= coverage.bounded == coverage.neurons == len(scores)


def assert_sums(engine: Engine, task: AttributeTask) -> None:
    """The aggregate of a task that asks for all neurons, against its own explanations."""
    (outcome,) = engine.run([task])
    got, every = outcome.aggregate, outcome.explanations
    weight = 1 / len(every) if task.options.aggregate is Aggregate.MEAN else 1.0
    assert got.positions == tuple(each.position for each in every)
    assert got.targets == tuple(each.target for each in every)
    assert_close(got.log_probability, weight * sum(each.target.log_probability for each in every))
    assert len(got.contrasts) == (len(every) if task.contrast is not None else 0)
    for name in ("attention", "ffn", "embedding_log_probability", "final_log_probability", "remainder"):
        assert_close(getattr(got.layers, name), weight * sum(getattr(each.layers, name) for each in every))
    assert_close(got.head_scores, weight * sum(each.head_scores for each in every))
    for name in ("heads", "heads_decreasing"):
        assert_heads(got, every, name, weight)
    for name in ("ffn_value_neurons", "attention_value_neurons"):
        for field in (name, f"{name}_decreasing"):
            assert_ranked_sums(getattr(got, field), [getattr(each, field) for each in every], weight)
    for place, neuron in enumerate(got.neurons):
        mine = [each.neurons[place] for each in every]
        assert_close(neuron.score, weight * sum(each.score for each in mine))
        assert neuron.token_scores == tuple(each.score for each in mine)
        assert neuron.token_coefficients == tuple(each.coefficient for each in mine)


def assert_heads(got: AggregateExplanation, every: Sequence[Explanation], name: str, weight: float) -> None:
    """Scores, positions and mean attention of heads, all of which the explanations have."""
    scores = [head.score for head in getattr(got, name)]
    assert scores == sorted(scores, reverse=name == "heads")
    for head in getattr(got, name):
        mine = [next(each for each in explanation.heads if each.head == head.head) for explanation in every]
        assert_close(head.token_scores, [each.score for each in mine])
        assert_close(head.score, weight * sum(head.token_scores))
        length = every[-1].position + 1
        for field, factor in (("position_scores", weight), ("attention_weights", 1 / len(every))):
            padded = [np.pad(getattr(each, field), (0, length - len(getattr(each, field)))) for each in mine]
            assert_close(getattr(head, field), factor * sum(padded))


def assert_ranked_sums(got: NeuronRanking, every: Sequence[NeuronRanking], weight: float) -> None:
    """A ranking of all neurons, whose scores the explanations' rankings of all neurons have."""
    mine = [scores_of(each) for each in every]
    for entry in got.neurons:
        by_token = [each.get(ranking_key(entry), 0.0) for each in mine]
        assert_close(entry.token_scores, by_token)
        assert_close(entry.score, weight * sum(by_token))
    assert set(scores_of(got)) == set(mine[-1])
    scores = [entry.score for entry in got.neurons]
    assert scores in (sorted(scores), sorted(scores, reverse=True))


def assert_alike(
    got: Explanation | AggregateExplanation, want: Explanation | AggregateExplanation, tolerance: float = TOLERANCE
) -> None:
    """Two answers of the engine to one question; neurons at the end of a ranking may be as strong as others."""
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=4 * tolerance)
    close(got.layers.attention, want.layers.attention)
    close(got.layers.ffn, want.layers.ffn)
    close(got.head_scores, want.head_scores)
    for name in ("heads", "heads_decreasing"):
        mine, theirs = ({head.head: head for head in getattr(side, name)} for side in (got, want))
        for head in mine.keys() & theirs.keys():
            close(mine[head].position_scores, theirs[head].position_scores)
    for name in AGGREGATE_RANKINGS:
        mine, theirs = (scores_of(getattr(side, name)) for side in (got, want))
        close(list(mine.values()), list(theirs.values()))
        for key in mine.keys() & theirs.keys():
            close(mine[key], theirs[key])
    close([each.score for each in got.neurons], [each.score for each in want.neurons])


def scores_of(ranking: NeuronRanking) -> dict[tuple[int, ...], float]:
    return {ranking_key(entry): entry.score for entry in ranking.neurons}


def assert_close(got: object, want: object) -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=4 * TOLERANCE)


def every_part(aggregate: Aggregate) -> AttributeOptions:
    """All neurons and heads, of both ends."""
    return AttributeOptions(
        direction=Direction.BOTH,
        top_k=100_000,
        head_top_k=1000,
        projection_top_k=0,
        query_sources=5,
        neurons=(FfnNeuron(1, 7), AttentionNeuron(0, 1, 2)),
        aggregate=aggregate,
        parts=VALUE_PARTS | {Part.LAYERS, Part.HEADS, Part.HEAD_POSITIONS},
    )


def task_of(
    prompt: tuple[int, ...], answer: tuple[int, ...], other: tuple[int, ...] = (), **facts: object
) -> AttributeTask:
    explained = tuple(ExplainedToken(len(prompt) - 1 + place, token) for place, token in enumerate(answer))
    return AttributeTask(token_ids=prompt + answer, explained=explained, contrast_answer=other, **facts)


def aggregate_of(compared: Compared, task: AttributeTask) -> AggregateExplanation:
    (outcome,) = compared.engine.run([task])
    if isinstance(outcome, Exception):
        raise outcome
    assert len(outcome.explanations) == task.explanations
    return outcome.aggregate


@functools.lru_cache(maxsize=4)
def kitchen(recipe: Recipe, dtype: torch.dtype = torch.float32) -> Compared:
    """The recipe's model in the engine, even where loading would refuse it for what float32 makes of its weights."""
    with patch.object(models, "measure", return_value=()):
        return compare(cook(recipe).to(dtype), "random")
