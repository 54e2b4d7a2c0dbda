"""Edges and relevances against autograd through a frozen pass written separately; and the paper's query step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from neuron_attribution.requests import AttributeOptions, Part, QuerySource, Subkey
from neuron_attribution_server.model.engine.explanation.keys import attention_keys
from neuron_attribution_server.model.tracing.frozen.sweeps import Place
from reference.compared import Compared
from reference.frozen import given, linear_pass, output_of
from reference.oracle import Oracle
from reference.tracing import Traced, traced

PROMPT = (3, 14, 15, 92, 65, 35)
LAST = len(PROMPT) - 1
TARGET = 11
TARGETS = (Place(0, 5, 2), Place(1, 7, LAST), Place(1, 3, 3), Place(2, 20, LAST), Place(2, 41, 0))


@pytest.mark.parametrize(("contrast", "subkey"), [(None, Subkey.UP), (60, Subkey.UP), (None, Subkey.GATE)])
def test_edges_are_gradients_of_the_stopped_pass(tiny: Compared, contrast: int | None, subkey: Subkey) -> None:
    """Of the output and neurons in every layer: what embeddings, every neuron and biases give, and relevances."""
    if subkey is Subkey.GATE and not tiny.engine._view.gated:
        pytest.skip("no gates")
    oracle, gate = tiny.oracle(PROMPT), subkey is Subkey.GATE
    found = traced(tiny.engine, PROMPT, [LAST], [TARGET], contrast, subkey)
    places = found.places
    edges = found.edges(TARGETS, places)
    stopped = linear_pass(oracle, stopped=True, gate=gate)
    wanted = [output_of(oracle, stopped, LAST, TARGET, contrast)]
    wanted += [stopped.activations[each.layer][each.position, each.unit] for each in TARGETS]
    assert found.value == pytest.approx(wanted[0].item(), rel=1e-5)
    for row, target in enumerate(wanted):
        tokens, neurons, biases = given(stopped, target)
        assert_close(edges.tokens[row], tokens)
        assert_close(edges.neurons[row], by_place(neurons, places))
        assert_close(edges.biases[row], biases)
    whole = linear_pass(oracle, stopped=False, gate=gate)
    tokens, neurons, biases = given(whole, output_of(oracle, whole, LAST, TARGET, contrast))
    relevance = found.relevances()
    assert_close(relevance.tokens, tokens)
    assert_close(found.relevance_of(relevance, places), by_place(neurons, places))
    assert_close(relevance.biases, biases)


def test_the_first_terms_are_the_papers_query_step(tiny: Compared) -> None:
    """What FFN neurons below give an attention neuron's key straight, over what it reads, times its score."""
    named = AttributeOptions(parts=frozenset({Part.ATTENTION_VALUE_NEURONS}), top_k=1000)
    strongest = tiny.explain_last(PROMPT, TARGET, options=named).attention_value_neurons.neurons
    source = next(each for each in strongest if each.neuron.layer == len(tiny.weights.layers) - 1)
    neuron, position, score = source.neuron, source.position, source.score
    options = AttributeOptions(
        parts=frozenset({Part.QUERY_FFN_NEURONS}), query_from=(QuerySource(neuron, position),), top_k=96
    )
    ranking = tiny.explain_last(PROMPT, TARGET, options=options).query_ffn_neurons.neurons
    found = straight(traced(tiny.engine, PROMPT, [LAST], [TARGET]))
    view = tiny.engine._view
    unit = view.attention_unit(neuron)
    key = attention_keys(view, torch.tensor([neuron.layer]).numpy(), torch.tensor([unit]).numpy())[0]
    base = found.captured.inputs[neuron.layer][0, position].float()
    reads = torch.zeros_like(found.output)
    reads[position] = key
    below = replace(found, frozen=replace(found.frozen, layers=found.frozen.layers[: neuron.layer]), output=reads)
    places = [place for place in below.places if place.position == position]
    edges = below.edges([], places).neurons[0]
    wanted = {(place.layer, place.unit): float(edge) for place, edge in zip(places, edges, strict=True)}
    for each in ranking:
        first = wanted.get((each.neuron.layer, each.neuron.index), 0.0) / float(base @ key) * score
        assert each.score == pytest.approx(first, abs=1e-6, rel=1e-4)
    assert max(abs(each.score) for each in ranking) > 1e-3


def straight(found: Traced) -> Traced:
    """The same without paths through attention."""
    layers = [
        replace(each, attention=replace(each.attention, weights=torch.zeros_like(each.attention.weights)))
        for each in found.frozen.layers
    ]
    return replace(found, frozen=replace(found.frozen, layers=layers))


def by_place(neurons: torch.Tensor, places: list[Place]) -> torch.Tensor:
    """Numbers [L, T, N] of some neurons at their positions."""
    layers, units, positions = torch.tensor([(each.layer, each.unit, each.position) for each in places]).T
    return neurons[layers, positions, units]


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """To float32's rounding of the largest."""
    assert got.shape == want.shape
    assert torch.allclose(got.double(), want, rtol=0, atol=2e-5 * max(1e-3, float(want.abs().max())))


def test_the_oracle_is_the_model(tiny: Compared) -> None:
    """The frozen pass, not stopped, ends where the pass did."""
    oracle: Oracle = tiny.oracle(PROMPT)
    assert torch.allclose(linear_pass(oracle, stopped=False).final, oracle.states.final, atol=1e-9)
    assert torch.allclose(linear_pass(oracle, stopped=True).final, oracle.states.final, atol=1e-9)
