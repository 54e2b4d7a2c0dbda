"""Query layers and query FFN neurons: the choice of sources and keys, and divisors that are zero."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, QuerySource
from neuron_attribution.requests import AttributeOptions, Direction, Part, ScoringMethod, Subkey
from neuron_attribution.results import QueryLayers
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.engine.explanation.queries import neurons as query_neurons
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from reference import queries
from reference.compare import assert_close, assert_no_gate
from reference.compare_neurons import ranking_key
from reference.compared import Compared, compare
from reference.tiny_models import tiny_gpt2

OTHER = (88, 7, 41, 7, 60, 2, 90, 33, 12)
ALL = 100_000


@pytest.mark.parametrize("subkey", list(Subkey))
def test_subkeys(tiny: Compared, subkey: Subkey) -> None:
    options = AttributeOptions(subkey=subkey, parts=frozenset({Part.QUERY_LAYERS}))
    if subkey is Subkey.GATE and tiny.name == "gpt2":
        task = AttributeTask(token_ids=OTHER, explained=(ExplainedToken(len(OTHER) - 1),), options=options)
        assert_no_gate(tiny.engine.run([task])[0])
    else:
        tiny.check(OTHER, 5, options=options)


@pytest.mark.parametrize("sources", [1, 7, 100])
def test_query_sources(tiny: Compared, sources: int) -> None:
    parts = frozenset({Part.QUERY_LAYERS, Part.QUERY_FFN_NEURONS})
    options = AttributeOptions(query_sources=sources, parts=parts, direction=Direction.BOTH)
    tiny.check(OTHER, 60, options=options)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_rows_share_the_query_step(tiny: Compared, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Tokens of two sequences, up to so many at once: each has the scores that it has alone."""
    options = AttributeOptions(parts=frozenset({Part.QUERY_FFN_NEURONS}), direction=Direction.BOTH, query_sources=40)
    explained = [tuple(ExplainedToken(position, 5) for position in places) for places in [(3, 6, 8), (2, 4)]]
    tasks = [AttributeTask(token_ids=OTHER, explained=each, options=options) for each in explained]
    tasks[1] = replace(tasks[1], token_ids=OTHER[::-1])
    alone = [tiny.explain(replace(task, explained=(token,)))[0] for task in tasks for token in task.explained]
    widest = max(
        len(layer.ffn_subvalues) for layer in ModelView(tiny.model, FAMILIES[tiny.model.config.model_type]).layers
    )
    monkeypatch.setattr(query_neurons, "SHARES_AT_ONCE", 40 * rows * widest)
    together = [each for outcome in tiny.engine.run(tasks) for each in outcome.explanations]
    for got, want in zip(together, alone, strict=True):
        for name in ("query_ffn_neurons", "query_ffn_neurons_decreasing"):
            pairs = zip(getattr(got, name).neurons, getattr(want, name).neurons, strict=True)
            for one, other in pairs:
                assert one.neuron == other.neuron
                assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("contrast", [None, 5])
def test_query_parts_start_from_named_neurons(tiny: Compared, contrast: int | None) -> None:
    """An FFN neuron, an attention neuron at a position, and one at every position."""
    want = tiny.oracle(OTHER).explain(target=60, contrast=contrast)
    ffn, attention = want.ffn_neuron_scores(), want.attention_neuron_scores()
    named = (
        QuerySource(FfnNeuron(2, 11)),
        QuerySource(AttentionNeuron(2, 1, 3), 4),
        QuerySource(AttentionNeuron(1, 2, 6)),
    )
    parts = frozenset({Part.QUERY_LAYERS, Part.QUERY_FFN_NEURONS})
    options = AttributeOptions(query_from=named, parts=parts, direction=Direction.BOTH, top_k=ALL)
    got = tiny.explain_last(OTHER, 60, contrast=contrast, options=options)
    sources = [(2, 1, 3, 4), *((1, 2, 6, position) for position in range(len(OTHER)))]
    expected = queries.ffn_query_layers(want, [(2, 11)], ffn)
    assert got.ffn_query_layers.sources == 1
    assert_layers_are(got.ffn_query_layers, expected)
    assert got.attention_query_layers.sources == len(sources)
    assert_layers_are(got.attention_query_layers, queries.attention_query_layers(want, sources, attention))
    expected = queries.query_ffn_neurons(want, sources, attention)
    for entry in (*got.query_ffn_neurons.neurons, *got.query_ffn_neurons_decreasing.neurons):
        tolerance = 1e-6 * max(10.0, expected.magnification)
        assert_close(entry.score, expected.scores[ranking_key(entry)], "query FFN neuron", tolerance)


def test_the_strongest_neurons_by_name_are_the_strongest_neurons(tiny: Compared) -> None:
    parts = frozenset({Part.ATTENTION_VALUE_NEURONS, Part.QUERY_FFN_NEURONS})
    options = AttributeOptions(parts=parts, query_sources=3, top_k=3)
    found = tiny.explain_last(OTHER, 60, options=options)
    named = tuple(QuerySource(score.neuron, score.position) for score in found.attention_value_neurons.neurons)
    again = tiny.explain_last(OTHER, 60, options=replace(options, query_from=named))
    assert [score.neuron for score in again.query_ffn_neurons.neurons] == [
        score.neuron for score in found.query_ffn_neurons.neurons
    ]


def test_what_no_source_is_of_is_left_out(tiny: Compared) -> None:
    options = AttributeOptions(query_from=(QuerySource(FfnNeuron(1, 4)),))
    got = tiny.explain_last(OTHER, 60, options=options)
    assert got.ffn_query_layers.sources == 1
    assert got.attention_query_layers is got.query_ffn_neurons is None


def test_a_source_is_not_seen_before_its_position(tiny: Compared) -> None:
    options = AttributeOptions(query_from=(QuerySource(AttentionNeuron(2, 1, 3), 5),))
    explained = (ExplainedToken(4, 5), ExplainedToken(6, 5))
    before, after = tiny.explain(AttributeTask(token_ids=OTHER, explained=explained, options=options))
    assert before.attention_query_layers is before.query_ffn_neurons is None
    assert after.attention_query_layers.sources == 1
    assert after.query_ffn_neurons.neurons


def test_query_sources_are_chosen_by_log_probability_increase(tiny: Compared) -> None:
    tiny.check(OTHER, 60, options=AttributeOptions(scoring_method=ScoringMethod.NORM))


def test_query_sources_of_a_contrast(tiny: Compared) -> None:
    parts = frozenset({Part.QUERY_LAYERS, Part.QUERY_FFN_NEURONS})
    tiny.check(OTHER, 60, 5, AttributeOptions(parts=parts))


@pytest.fixture(scope="module")
def keyless() -> Compared:
    """A GPT-2 with one FFN neuron and one attention neuron that only their biases activate: their keys are zero."""
    model = tiny_gpt2()
    block = model.transformer.h[1]
    with torch.no_grad():
        block.mlp.c_fc.weight[:, 9] = 0
        block.mlp.c_fc.bias[9] = 1
        block.attn.c_attn.weight[:, 2 * 32 + 8 * 3 + 5] = 0
    return compare(model, "keyless")


def test_sources_without_a_key_are_skipped_and_counted(keyless: Compared) -> None:
    """The neuron (1, 3, 5) is a source at each of the nine positions."""
    parts = frozenset({Part.QUERY_LAYERS, Part.QUERY_FFN_NEURONS})
    got = keyless.explain_last(OTHER, 5, options=AttributeOptions(parts=parts, query_sources=ALL, top_k=ALL))
    want = keyless.oracle(OTHER).explain(target=5)
    ffn, attention = want.ffn_neuron_scores(), want.attention_neuron_scores()
    assert abs(ffn[1, 9]) > 1e-3
    assert (got.ffn_query_layers.sources, got.ffn_query_layers.skipped_sources) == (len(ffn), 1)
    assert got.attention_query_layers.sources == len(attention)
    assert got.attention_query_layers.skipped_sources == len(OTHER)
    expected = queries.ffn_query_layers(want, [key for key in ffn if key != (1, 9)], ffn)
    assert_layers_are(got.ffn_query_layers, expected)
    sources = [key for key in attention if key[:3] != (1, 3, 5)]
    assert_layers_are(got.attention_query_layers, queries.attention_query_layers(want, sources, attention))
    expected = queries.query_ffn_neurons(want, sources, attention)
    for entry in got.query_ffn_neurons.neurons:
        assert math.isfinite(entry.score)
        tolerance = 1e-6 * max(10.0, expected.magnification)
        assert_close(entry.score, expected.scores[ranking_key(entry)], "query FFN neuron", tolerance)


def assert_layers_are(got: QueryLayers, expected: queries.QueryScores) -> None:
    """Within what the worst source's divisor does to rounding."""
    tolerance = 1e-6 * max(10.0, expected.magnification)
    wanted = [expected.scores[component.kind, component.layer] for component in got.layers]
    assert_close([component.score for component in got.layers], wanted, "query layers", tolerance)
