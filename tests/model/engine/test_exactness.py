"""The bounded top k is the top k of brute force, on random models made to be difficult.

Every example is a random model, request and number of neurons. Hypothesis draws the same examples in every run.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neuron_attribution.requests import AttributeOptions, Direction, Part, ScoringMethod
from neuron_attribution.results import Explanation, NeuronRanking
from neuron_attribution_server.model.attribution import host
from neuron_attribution_server.model.attribution.search import ranking as bounded_ranking
from neuron_attribution_server.model.attribution.search.value_search import Ranges
from neuron_attribution_server.model.loading import models, ranges
from neuron_attribution_server.model.loading.ranges import VocabularyRanges
from reference.adversaries import TWISTS, Recipe, cook
from reference.captured_scores import CapturedPrediction, NeuronScores
from reference.compare_neurons import ranking_key
from reference.compared import Compared, compare
from safetensors.torch import save_file

TOLERANCE = 1e-5
FIXED = settings(derandomize=True, database=None, max_examples=examples(150), suppress_health_check=list(HealthCheck))
PARTS = frozenset({Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS})
FROM_INCREASE = (
    ScoringMethod.LOG_PROBABILITY_INCREASE,
    ScoringMethod.LOG_PROBABILITY,
    ScoringMethod.PROBABILITY_INCREASE,
)
SIGNS = {Direction.INCREASE: (1,), Direction.DECREASE: (-1,), Direction.BOTH: (1, -1)}


@dataclass(frozen=True)
class Case:
    """A model, what is asked of it, and how many more than k neurons a search scores at once."""

    recipe: Recipe
    tokens: tuple[int, ...]
    target: int
    contrast: int | None
    options: AttributeOptions
    spare: int


@st.composite
def cases(draw: st.DrawFn, methods: tuple[ScoringMethod, ...], twists: st.SearchStrategy[tuple[str, ...]]) -> Case:
    """Contrasts only where the method has them."""
    recipe = Recipe(
        family=draw(st.sampled_from(["llama", "gpt2"])),
        layers=draw(st.integers(1, 3)),
        ffn_width=draw(st.sampled_from([8, 40, 150])),
        vocabulary=draw(st.sampled_from([2, 3, 11, 60])),
        seed=draw(st.integers(0, 10_000)),
        twists=draw(twists),
    )
    token = st.integers(0, recipe.vocabulary - 1)
    target, method = draw(token), draw(st.sampled_from(methods))
    contrast = draw(st.none() | token) if method is ScoringMethod.LOG_PROBABILITY_INCREASE else None
    options = AttributeOptions(
        parts=PARTS,
        direction=draw(st.sampled_from(Direction)),
        top_k=draw(st.sampled_from([1, 2, 5, 20, 100, 5000])),
        scoring_method=method,
        projection_top_k=0,
        include_final_norm_bias=draw(st.booleans()),
    )
    return Case(
        recipe=recipe,
        tokens=tuple(draw(st.lists(token, min_size=1, max_size=6))),
        target=target,
        contrast=None if contrast == target else contrast,
        options=options,
        spare=draw(st.sampled_from([0, bounded_ranking.SPARE])),
    )


PLAIN = st.just(())
TWISTED = st.lists(st.sampled_from(sorted(TWISTS)), min_size=1, max_size=3, unique=True).map(tuple)


@FIXED
@given(cases(FROM_INCREASE, TWISTED))
def test_difficult_models(case: Case) -> None:
    check(case)


@FIXED
@given(cases((ScoringMethod.LOG_PROBABILITY_INCREASE,), PLAIN))
def test_plain_models(case: Case) -> None:
    check(case)


@FIXED
@given(cases(tuple(ScoringMethod), PLAIN | TWISTED))
def test_every_method(case: Case) -> None:
    check(case)


@settings(FIXED, max_examples=examples(50))
@given(cases(FROM_INCREASE, PLAIN | TWISTED))
def test_attention_neurons_over_positions(case: Case) -> None:
    case = replace(case, options=replace(case.options, attention_neurons_over_positions=True))
    compared = kitchen(case.recipe)
    want = CapturedPrediction(compared, case.tokens, case.target, case.contrast, case.options.include_final_norm_bias)
    scores = want.whole_attention(case.options.scoring_method)
    assert_rankings(explain(compared, case), "attention_value_neurons", scores, case)


@settings(FIXED, max_examples=examples(60))
@given(cases(FROM_INCREASE, PLAIN | TWISTED), st.sampled_from([torch.bfloat16, torch.float16]), st.booleans())
def test_weights_in_half_precision(case: Case, dtype: torch.dtype, is_host: bool) -> None:
    """As a processor multiplies with them, and as a device does."""
    compared = kitchen(case.recipe, dtype)
    with patch.object(host, "HOST", "cpu" if is_host else "none"):
        got = explain(compared, case)
        check_answer(got, compared, case)


@settings(FIXED, max_examples=examples(60))
@given(cases((ScoringMethod.LOG_PROBABILITY_INCREASE,), PLAIN))
def test_plain_models_from_their_weights(case: Case) -> None:
    """Against the oracle, which computes its own states in float64."""
    compared = kitchen(case.recipe)
    got = explain(compared, case)
    want = compared.oracle(case.tokens).explain(None, case.target, case.contrast, case.options.include_final_norm_bias)
    for field, scores in (
        ("ffn_value_neurons", want.ffn_neuron_scores()),
        ("attention_value_neurons", want.attention_neuron_scores()),
    ):
        without_allowance = {key: (score, 0.0) for key, score in scores.items()}
        assert_rankings(got, field, without_allowance, case)


def test_a_wrong_bound_is_noticed() -> None:
    """Without Hoeffding's term decreases are not bounded: the tests above can fail."""
    recipe = Recipe("llama", layers=1, ffn_width=40, vocabulary=60, seed=0, twists=("dominant", "duplicate tokens"))
    options = AttributeOptions(parts=PARTS, direction=Direction.DECREASE, top_k=1, projection_top_k=0)
    case = Case(recipe, tokens=(0,), target=0, contrast=None, options=options, spare=0)
    check(case)
    right = VocabularyRanges.__call__

    def nothing(ranges: VocabularyRanges) -> Ranges:
        return {kind: torch.zeros_like(each) for kind, each in right(ranges).items()}

    with patch.object(VocabularyRanges, "__call__", nothing), pytest.raises(AssertionError, match="is missing"):
        check(case)


@pytest.mark.parametrize("trouble", ["unwritable", "damaged", "of something else"])
def test_ranges_that_cannot_be_kept_cost_time_and_no_answer(tmp_path: Path, trouble: str) -> None:
    """A cache folder that cannot be made; a file that is no whole safetensors file; one without what is looked up."""
    weights = kitchen(Recipe("llama", layers=1, ffn_width=8, vocabulary=20, seed=0)).engine._explainer._weights
    (tmp_path / "file").write_text("")
    cache = tmp_path / ("file/ranges" if trouble == "unwritable" else "ranges")
    if trouble != "unwritable":
        cache.mkdir()
    if trouble == "damaged":
        (cache / "ffn-0.safetensors").write_bytes(b"half a")
    if trouble == "of something else":
        save_file({"other": torch.zeros(1)}, cache / "ffn-0.safetensors")
    with patch.object(ranges, "_halves_are_faster", return_value=False):
        right = VocabularyRanges(weights, None)()
        both = [VocabularyRanges(weights, cache)() for _ in range(2)]
    for found in both:
        assert all(torch.equal(found[kind], right[kind]) for kind in right)
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"file", "ranges"}] == []


@pytest.mark.parametrize("method", list(ScoringMethod))
def test_layers_are_ranked_in_groups(monkeypatch: pytest.MonkeyPatch, method: ScoringMethod) -> None:
    """With room for the values of one layer at a time, as for those of all; ties, which the norm makes, in order."""
    compared = kitchen(Recipe("llama", layers=3, ffn_width=24, vocabulary=40, seed=1))
    options = AttributeOptions(
        parts=PARTS, direction=Direction.BOTH, top_k=60, projection_top_k=0, scoring_method=method
    )
    whole = compared.explain_last((3, 1, 4, 1, 5), 9, options=options)
    monkeypatch.setattr("neuron_attribution_server.model.attribution.search.value_neurons.BOUNDS_AT_ONCE", 1)
    grouped = compared.explain_last((3, 1, 4, 1, 5), 9, options=options)
    for name in ("ffn_value_neurons", "attention_value_neurons"):
        for field in (name, f"{name}_decreasing"):
            pairs = [
                [(each.neuron, each.position, each.score) for each in getattr(got, field).neurons]
                for got in (whole, grouped)
            ]
            assert pairs[0] == pairs[1], field


def check(case: Case) -> None:
    """Both kinds of neurons, each end that is asked for."""
    compared = kitchen(case.recipe)
    check_answer(explain(compared, case), compared, case)


def check_answer(got: Explanation, compared: Compared, case: Case) -> None:
    """Against brute force in float64 over the states that the engine captures."""
    want = CapturedPrediction(compared, case.tokens, case.target, case.contrast, case.options.include_final_norm_bias)
    assert_rankings(got, "ffn_value_neurons", want.ffn(case.options.scoring_method), case)
    assert_rankings(got, "attention_value_neurons", want.attention(case.options.scoring_method), case)


def explain(compared: Compared, case: Case) -> Explanation:
    """The engine's answer."""
    with patch.object(bounded_ranking, "SPARE", case.spare):
        return compared.explain_last(case.tokens, case.target, contrast=case.contrast, options=case.options)


def assert_rankings(got: Explanation, field: str, scores: NeuronScores, case: Case) -> None:
    """Each end that is asked for."""
    for sign in SIGNS[case.options.direction]:
        assert_top_k(getattr(got, field if sign > 0 else f"{field}_decreasing"), scores, case.options.top_k, sign)


@functools.lru_cache(maxsize=4)
def kitchen(recipe: Recipe, dtype: torch.dtype = torch.float32) -> Compared:
    """The recipe's model in the engine, even where loading would refuse it for what float32 makes of its weights."""
    with patch.object(models, "measure", return_value=()):
        return compare(cook(recipe).to(dtype), "random")


def assert_top_k(ranking: NeuronRanking, scores: NeuronScores, top_k: int, sign: int) -> None:
    """Only scores closer than rounding may change places; the coverage is the truth."""
    keys = [ranking_key(entry) for entry in ranking.neurons]
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
    coverage = ranking.coverage
    assert coverage.exact
    assert count <= coverage.scored <= coverage.bounded == coverage.neurons == len(scores)
