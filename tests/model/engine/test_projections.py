"""What neurons mean in the vocabulary, engine against oracle."""

from __future__ import annotations

import pytest
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron
from neuron_attribution.requests import Side, Subkey
from neuron_attribution.results import NeuronProjection, ProjectedToken, Projection, Token
from neuron_attribution_server.model.engine.explanation.remembered import RememberedProjections
from neuron_attribution_server.tasks.tasks import ProjectTask
from reference.compare import assert_no_gate, assert_projection
from reference.compared import Compared
from reference.projections import project_neuron, project_through
from reference.tiny_models import VOCABULARY

FFN = (FfnNeuron(0, 0), FfnNeuron(2, 47), FfnNeuron(1, 20))
ATTENTION = (AttentionNeuron(0, 0, 0), AttentionNeuron(2, 3, 7), AttentionNeuron(1, 1, 4), AttentionNeuron(1, 2, 4))


def projections(tiny: Compared, neurons: tuple[Neuron, ...], **facts: object) -> tuple[NeuronProjection, ...]:
    """The engine's answer, in the order asked."""
    (outcome,) = tiny.engine.run([ProjectTask(neurons=neurons, **facts)])
    if isinstance(outcome, Exception):
        raise outcome
    assert [projection.neuron for projection in outcome.projections] == list(neurons)
    return outcome.projections


@pytest.mark.parametrize("top_k", [1, 10, VOCABULARY, 10 * VOCABULARY])
@pytest.mark.parametrize("side", list(Side))
def test_neurons_of_both_kinds(tiny: Compared, side: Side, top_k: int) -> None:
    for got in projections(tiny, FFN + ATTENTION, side=side, top_k=top_k):
        assert_projection(got.projection, project_neuron(tiny.weights, got.neuron, side), top_k)


def test_gate_subkeys(tiny: Compared) -> None:
    if tiny.name == "gpt2":
        assert_no_gate(tiny.engine.run([ProjectTask(neurons=FFN, side=Side.SUBKEY, subkey=Subkey.GATE)])[0])
        return
    for got in projections(tiny, FFN, side=Side.SUBKEY, subkey=Subkey.GATE):
        assert_projection(got.projection, project_neuron(tiny.weights, got.neuron, Side.SUBKEY, Subkey.GATE), 10)


@pytest.mark.parametrize("head", [Head(1, 0), Head(2, 1), Head(2, 3)], ids=str)
def test_ffn_neurons_through_a_head(tiny: Compared, head: Head) -> None:
    neurons = (FfnNeuron(0, 0), FfnNeuron(0, 31))
    for got in projections(tiny, neurons, through=head):
        assert_projection(got.projection, project_through(tiny.weights, got.neuron, head), 10)


def test_remembered_projections_are_bounded_by_their_tokens() -> None:
    """The least recently used go first, however many neurons that are."""
    token = ProjectedToken(Token(0, ""), 0.0)
    remembered = RememberedProjections(capacity=100)
    neurons = [FfnNeuron(0, index) for index in range(12)]
    for neuron in neurons[:10]:
        remembered.put(neuron, 5, Projection((token,) * 5, (token,) * 5))
    assert remembered.tokens == 100
    assert remembered.get(neurons[0], 5) is not None
    remembered.put(neurons[10], 30, Projection((token,) * 30, (token,) * 30))
    kept = [neuron for neuron in neurons[:10] if remembered.get(neuron, 5) is not None]
    assert kept == [neurons[0], *neurons[7:10]]
    assert remembered.get(neurons[10], 5) is None
    assert remembered.tokens == 100
    remembered.put(neurons[11], 60, Projection((token,) * 60, (token,) * 60))
    assert remembered.tokens == 0, "one that is larger than all there is, is not kept"


def test_a_projection_that_is_there_counts_once() -> None:
    """Work that went first, at a checkpoint, may have put what a batch is about to put."""
    remembered = RememberedProjections(capacity=4)
    projection = Projection((ProjectedToken(Token(1, "a"), 1.0),), (ProjectedToken(Token(2, "b"), -1.0),))
    for _ in range(3):
        remembered.put(FfnNeuron(0, 1), 1, projection)
    assert remembered.tokens == 2
    assert remembered.get(FfnNeuron(0, 1), 1) is projection
