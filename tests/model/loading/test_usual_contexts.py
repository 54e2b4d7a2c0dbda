"""How usual a neuron's coefficient is, against the oracle's coefficients in the same contexts."""

from __future__ import annotations

import pytest
import torch
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.loading import usual_contexts
from neuron_attribution_server.model.loading.usual_contexts import MOST_TOKENS, SENTENCES, usual_activity
from reference.compared import Compared
from reference.tiny_models import VOCABULARY


def letters(text: str) -> list[int]:
    return [ord(letter) % VOCABULARY for letter in text]


def view_of(tiny: Compared) -> ModelView:
    return ModelView(tiny.model, FAMILIES[tiny.model.config.model_type])


def test_it_is_the_part_of_the_contexts_in_which_the_neuron_is_as_strong(tiny: Compared) -> None:
    """Every sentence but its first position; halfway between two contexts, which no rounding moves."""
    activity = usual_activity(view_of(tiny), letters)
    assert activity.contexts == len(SENTENCES) * (MOST_TOKENS - 1)
    passes = [tiny.oracle(letters(sentence)[:MOST_TOKENS]).states.layers for sentence in SENTENCES]
    for neuron in (FfnNeuron(0, 3), FfnNeuron(1, 20), FfnNeuron(2, 47)):
        found = torch.cat([layers[neuron.layer].coefficients[1:, neuron.index] for layers in passes])
        ordered = found.sort().values
        gaps = (ordered[1:] - ordered[:-1]) / ordered[1:].abs()
        for place in gaps.topk(5).indices.tolist():
            middle = ((ordered[place] + ordered[place + 1]) / 2).item()
            as_strong = found >= middle if middle > 0 else found <= middle
            [part] = activity.parts([(neuron, middle)])
            assert part == pytest.approx(as_strong.double().mean().item(), abs=1e-6)


def test_of_first_tokens_it_is_the_part_at_which_the_neuron_is_half_as_strong(tiny: Compared) -> None:
    activity = usual_activity(view_of(tiny), letters)
    passes = [tiny.oracle(letters(sentence)[:1]).states.layers for sentence in SENTENCES]
    for neuron in (FfnNeuron(0, 3), FfnNeuron(2, 47)):
        found = torch.stack([layers[neuron.layer].coefficients[0, neuron.index] for layers in passes])
        strength = 1.9 * found[found.abs().argmax()].item()
        as_strong = (found / strength >= 0.5).double().mean().item()
        assert as_strong > 0
        assert activity.parts_of_first([(neuron, strength)]) == [pytest.approx(as_strong, abs=1e-6)]


def test_of_many_neurons_fewer_sentences_are_looked_at(tiny: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there is memory for, one after another; without memory for one, none."""
    view = view_of(tiny)
    sentence = 2 * MOST_TOKENS * view.sizes.layers * view.sizes.ffn_width
    whole = usual_activity(view, letters)
    monkeypatch.setattr(usual_contexts, "MOST_BYTES", 3 * sentence)
    few = usual_activity(view, letters)
    assert few.contexts == 3 * (MOST_TOKENS - 1)
    torch.testing.assert_close(few._coefficients, whole._coefficients[: few.contexts])
    monkeypatch.setattr(usual_contexts, "MOST_BYTES", sentence - 1)
    assert usual_activity(view, letters) is None


def test_tokens_that_the_model_does_not_have_are_left_out(tiny: Compared) -> None:
    assert usual_activity(view_of(tiny), lambda _: [VOCABULARY, 3, 4]) is None
    assert usual_activity(view_of(tiny), lambda _: [5]) is None, "a first token is like no other"
