"""Attribution of an intervened pass: what attributing an edited copy gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import AttributeOptions, Direction, Intervention, LayerPart, Scale, SetTo
from neuron_attribution.results import Explanation
from neuron_attribution_server.model.attribution.search import value_search
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import ExplainedRows
from neuron_attribution_server.model.capture.edits import Edits, Placed
from neuron_attribution_server.model.engine.explanation.rows import Row, row_states
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask
from reference.compare import TOLERANCE, assert_close
from reference.compare_explanations import assert_layers
from reference.compare_neurons import ranking_key
from reference.compared import Compared
from reference.edited import edited_copy
from reference.oracle import Oracle

PROMPT = (90, 10, 90, 95, 1, 34, 54, 89, 19)
TARGET = 5
WIDE = {"direction": Direction.BOTH, "query_sources": 8, "projection_top_k": 0}
HEADS = Intervention(heads=(Head(1, 2), Head(0, 1)))
SETS = {
    "heads": (HEADS,),
    "scaled neurons": (Intervention(Scale(-2.0), neurons=(FfnNeuron(1, 5), AttentionNeuron(2, 3, 1))),),
    "an FFN": (Intervention(layers=(LayerPart(1, "ffn"),)),),
}


def explain(engine, interventions=(), scales=(), **facts) -> tuple[Explanation, ...]:
    explained = () if "generate" in facts else (ExplainedToken(len(PROMPT) - 1, TARGET), ExplainedToken(4, TARGET))
    options = AttributeOptions(interventions=interventions, final_norm_scales=scales, **WIDE)
    (outcome,) = engine.run([AttributeTask(token_ids=PROMPT, explained=explained, options=options, **facts)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.explanations


@pytest.mark.parametrize("name", SETS)
def test_what_scores_depend_on_is_that_of_the_copy(tiny: Compared, name: str) -> None:
    """Predictions, layers, heads, and every neuron that was not changed itself.

    In the copy it is the subvalues that are changed, here the coefficients: their products, and so the scores, agree.
    """
    copied = engine_from(edited_copy(tiny.model, SETS[name]))
    for got, want in zip(explain(tiny.engine, SETS[name]), explain(copied), strict=True):
        assert_close(got.target.log_probability, want.target.log_probability, "target")
        for field in ("attention", "ffn", "embedding_log_probability", "final_log_probability"):
            assert_close(getattr(got.layers, field), getattr(want.layers, field), field)
        assert_close(got.head_scores, want.head_scores, "heads")
        assert [head.head for head in got.heads[:3]] == [head.head for head in want.heads[:3]]
        assert_close(got.heads[0].position_scores, want.heads[0].position_scores, "positions of the strongest head")
        for ranking in ("ffn_value_neurons", "attention_value_neurons", "attention_value_neurons_decreasing"):
            assert_ranking(getattr(got, ranking).neurons, getattr(want, ranking).neurons)
        assert_ranking(got.query_ffn_neurons.neurons, want.query_ffn_neurons.neurons)


def assert_ranking(got, want) -> None:
    """The same neurons at the same places; those of one score may change places."""
    assert_close([entry.score for entry in got], [entry.score for entry in want], "scores")
    apart = {(entry.neuron, entry.position): entry.score for entry in want}
    for entry in got:
        if (entry.neuron, entry.position) in apart:
            assert_close(entry.score, apart[entry.neuron, entry.position], str(entry.neuron))
    assert len({(entry.neuron, entry.position) for entry in got} & set(apart)) >= len(got) - 1


@pytest.mark.parametrize("name", SETS)
def test_the_scale_of_the_plain_pass_may_be_kept(tiny: Compared, name: str) -> None:
    """Scores are read with it, and the predictions stay the model's own."""
    plain = explain(tiny.engine)
    scales = tuple(each.final_norm_scale for each in plain)
    copied = Oracle(edited_copy(tiny.model, SETS[name]), PROMPT)
    for own, got, before in zip(
        explain(tiny.engine, SETS[name]), explain(tiny.engine, SETS[name], scales=scales), plain, strict=True
    ):
        assert got.final_norm_scale == before.final_norm_scale != own.final_norm_scale
        assert (got.target.token, got.target.rank) == (own.target.token, own.target.rank)
        assert_close(got.target.log_probability, own.target.log_probability, "target")
        want = copied.explain(got.position, TARGET)
        assert_close(own.final_norm_scale, want.unembedding.scale.item(), "scale")
        want.unembedding.scale = tiny.oracle(PROMPT).explain(got.position, TARGET).unembedding.scale
        assert_close(got.final_norm_scale, want.unembedding.scale.item(), "scale of the plain pass")
        assert_layers(got, want, TOLERANCE)
        assert_close(got.head_scores, want.head_scores(), "heads")
        scores = want.ffn_neuron_scores()
        for entry in (*got.ffn_value_neurons.neurons, *got.ffn_value_neurons_decreasing.neurons):
            assert_close(entry.score, scores[ranking_key(entry)], str(entry.neuron))


def test_a_scale_far_from_the_passs_own_is_refused(tiny: Compared) -> None:
    [plain, _] = explain(tiny.engine)
    for factor in (0.2, 5.0, float("nan")):
        with pytest.raises(InvalidArgumentError, match=r"final_norm_scales\[1\]: .* not within a factor of 4"):
            explain(tiny.engine, scales=(plain.final_norm_scale, plain.final_norm_scale * factor))


def test_zeroed_heads_score_nothing(tiny: Compared) -> None:
    """By head, by position and by neuron; the scores of the others move."""
    plain, zeroed = explain(tiny.engine)[0], explain(tiny.engine, (HEADS,))[0]
    assert zeroed.head_scores[1, 2] == zeroed.head_scores[0, 1] == 0
    assert abs(plain.head_scores[1, 2]) > 1e-4
    assert abs(plain.head_scores - zeroed.head_scores).max() > 0.01
    named = (AttentionNeuron(1, 2, 0), AttentionNeuron(2, 0, 0))
    options = AttributeOptions(interventions=(HEADS,), neurons=named, top_k=10_000, **WIDE)
    task = AttributeTask(token_ids=PROMPT, explained=(ExplainedToken(8, TARGET),), options=options)
    (outcome,) = tiny.engine.run([task])
    scores = {(e.neuron, e.position): e for e in outcome.explanations[0].attention_value_neurons.neurons}
    of_zeroed = [entry for (neuron, _), entry in scores.items() if (neuron.layer, neuron.head) == (1, 2)]
    assert len(of_zeroed) == len(PROMPT) * tiny.engine.facts.sizes.head_size
    assert {entry.score for entry in of_zeroed} == {entry.coefficient for entry in of_zeroed} == {0}
    assert [bool(entry.score) for entry in outcome.explanations[0].neurons] == [False, True]


def test_a_set_coefficient_is_scored_as_set(tiny: Compared) -> None:
    neuron = FfnNeuron(1, 7)
    options = AttributeOptions(interventions=(Intervention(SetTo(9.0), neurons=(neuron,)),), neurons=(neuron,), **WIDE)
    task = AttributeTask(token_ids=PROMPT, explained=(ExplainedToken(8, TARGET),), options=options)
    (outcome,) = tiny.engine.run([task])
    (explanation,) = outcome.explanations
    assert explanation.neurons[0].coefficient == pytest.approx(9.0)
    assert abs(explanation.layers.remainder) < 1e-4


def test_generated_tokens_are_those_of_the_intervened_model(tiny: Compared) -> None:
    interventions = (Intervention(Scale(-3.0), layers=(LayerPart(1, "ffn"),)),)
    got = explain(tiny.engine, interventions, generate=4)
    want = explain(engine_from(edited_copy(tiny.model, interventions)), generate=4)
    plain = explain(tiny.engine, generate=4)
    tokens = [[explanation.target.token.id for explanation in each] for each in (got, want, plain)]
    assert tokens[0] == tokens[1] != tokens[2]
    assert all(explanation.target.rank == 1 for explanation in got)


def test_the_explained_positions_only(tiny: Compared) -> None:
    """As Intervene does it there."""
    only = Intervention(Scale(-3.0), layers=(LayerPart(0, "ffn"),), explained_position_only=True)
    options = AttributeOptions(interventions=(only,), **WIDE)
    task = AttributeTask(token_ids=PROMPT, explained=(ExplainedToken(8, TARGET),), options=options)
    sets = ((only,), (replace(only, explained_position_only=False),))
    other = InterveneTask(token_ids=PROMPT, sets=sets, target=TARGET)
    attributed, intervened = tiny.engine.run([task, other])
    got = attributed.explanations[0].target.log_probability
    first, second = (result.after.target.log_probability for result in intervened.results)
    assert got == pytest.approx(first, abs=1e-5)
    assert abs(first - second) > 1e-3


def test_a_model_in_which_no_neuron_matters_ends_the_search_and_says_so(tiny: Compared, monkeypatch) -> None:
    """Without it every neuron would be scored; others of the batch keep their guarantee."""
    monkeypatch.setattr(value_search, "MORE_PRODUCTS", 40 * tiny.engine._unembedding.weight.numel())
    layers = tuple(LayerPart(number, "attention") for number in range(tiny.engine.facts.sizes.layers))
    silenced = AttributeOptions(interventions=(Intervention(layers=layers),), top_k=20, projection_top_k=0)
    tasks = [
        AttributeTask(token_ids=PROMPT, explained=(ExplainedToken(len(PROMPT) - 1, TARGET),), options=options)
        for options in (silenced, replace(silenced, interventions=()))
    ]
    given_up, plain = (outcome.explanations[0] for outcome in tiny.engine.run(tasks))
    coverage = given_up.attention_value_neurons.coverage
    assert not coverage.exact
    assert coverage.scored < coverage.neurons
    assert plain.attention_value_neurons.coverage.exact
    assert plain.ffn_value_neurons.coverage.exact


def test_the_rows_of_a_sequence_share_their_values_whatever_is_changed(tiny: Compared) -> None:
    """What multiplies the heads is each row's own; that of another sequence is one."""
    only = replace(HEADS, explained_position_only=True)
    positions = tuple(range(2, len(PROMPT)))
    view = tiny.engine._view
    sequences = [Placed((Intervention(Scale(0.5), heads=(Head(2, 1),)), only), positions), Placed()]
    rows = ExplainedRows.from_counts([positions, (3,)], view.device)
    with torch.inference_mode():
        captured = capture(view, [PROMPT, PROMPT], rows, Edits(view, sequences))
        explained = [
            Row(index, int(index == len(positions)), position, TARGET, None, AttributeOptions())
            for index, position in enumerate((*positions, 3))
        ]
        states = row_states(captured, explained, view.sizes.heads)
    assert states.values.shape[:3] == (2, view.sizes.layers, view.sizes.key_value_heads)
    torch.testing.assert_close(states.values[0, 0], states.values[1, 0])
    changed, plain = states.gates[: len(positions)], states.gates[-1]
    assert [changed[:, layer, head].unique().tolist() for layer, head in ((1, 2), (0, 1), (2, 1), (0, 0))] == [
        [0],
        [0],
        [0.5],
        [1],
    ]
    assert plain.unique().tolist() == [1]
