"""What must hold of the frozen linear model, of every family: sums of edges and relevances, in float64 and float32.

1. relevances of embeddings and biases add up to the output
2. what all sources give a node adds up to its activation, and to the output
3. a relevance is what goes to the output straight, and through every neuron in its share
"""

from __future__ import annotations

import pytest
import torch
from examples import few
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import Subkey
from neuron_attribution.traces import TraceOptions
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.model.tracing.support import why_untraceable
from neuron_attribution_server.tasks.tasks import ExplainedToken, TraceTask
from reference.in_double import doubled, in_double
from reference.tiny_families import TINY_FAMILIES, tiny_family
from reference.tracing import Traced, engine_of, traced

PROMPT = (45, 73, 93, 18, 59)
LAST = len(PROMPT) - 1
TARGET, CONTRAST = 5, 60
SAMPLE = 61
"""Every so many neurons are targets in the third identity's check."""

families = pytest.mark.parametrize("name", few(TINY_FAMILIES, 8))


def skip_untraceable(engine: Engine) -> None:
    if why_untraceable(engine._view) is not None:
        pytest.skip("refused by name")


@families
def test_identities_in_float32(name: str) -> None:
    engine = engine_of(name)
    skip_untraceable(engine)
    assert_identities(traced(engine, PROMPT, [LAST], [TARGET]), 1e-4)


@families
def test_identities_in_float64(name: str) -> None:
    """Of two explained tokens together, with a contrast, by the other subkey where there are gates."""
    skip_untraceable(engine_of(name))
    with in_double():
        engine = engine_from(doubled(tiny_family(name)), None, name)
        subkey = Subkey.GATE if engine._view.gated else Subkey.UP
        assert_identities(traced(engine, PROMPT, [LAST], [TARGET]), 1e-9)
        assert_identities(traced(engine, PROMPT, [2, LAST], [TARGET, 8], CONTRAST, subkey), 1e-9)


@families
def test_what_cannot_be_frozen_is_refused_by_name(name: str) -> None:
    engine = engine_of(name)
    reason = why_untraceable(engine._view)
    task = TraceTask(token_ids=PROMPT, explained=(ExplainedToken(LAST, TARGET),), options=TraceOptions(nodes=3))
    (outcome,) = engine.run([task])
    if reason is None:
        assert len(outcome.graph.nodes) >= 1 + 3 + len(PROMPT)
    else:
        assert isinstance(outcome, FailedPreconditionError)
        assert outcome.reason == "NOT_TRACEABLE"
        assert reason in str(outcome)
    recurs = engine._view.is_recurrent
    assert (reason is not None) == (recurs or any(layer.also_written_module for layer in engine._view.layers))


def assert_identities(found: Traced, tolerance: float) -> None:
    """All three, relative to the sums of magnitudes that make them up."""
    places = found.places
    relevance, targets = found.relevances(), places[::SAMPLE]
    own = relevance.tokens.sum() + relevance.biases.sum()
    size = relevance.tokens.abs().sum() + relevance.biases.abs().sum()
    assert abs(float(own) - found.value) <= tolerance * float(size)
    activations = torch.cat([torch.tensor([found.value]), found.activations(targets)])
    given = found.edges(targets, places)
    everything = torch.cat([given.neurons, given.tokens, given.biases], 1)
    assert torch.allclose(everything.sum(1), given.sums, rtol=0, atol=tolerance * float(given.magnitudes.max()))
    assert torch.all((given.sums - activations).abs() <= tolerance * given.magnitudes)
    assert float(given.magnitudes[0]) > 0.1
    every = found.edges(places, targets)
    through = every.neurons[1:] / found.activations(places)[:, None]
    active = found.activations(places) != 0
    own_relevance = found.relevance_of(relevance, places)
    whole = every.neurons[0] + (through * own_relevance[:, None])[active].sum(0)
    wanted, scale = own_relevance[::SAMPLE], float(own_relevance.abs().sum())
    assert torch.all((whole - wanted).abs() <= tolerance * scale)
