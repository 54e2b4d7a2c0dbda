"""How neurons are written, read, ordered and sent, those of routed experts among them."""

from __future__ import annotations

import pytest
from neuron_attribution.convert.neurons import neuron_from_proto, neuron_to_proto
from neuron_attribution.convert.rankings import neuron_score_from_proto, write_neuron_score
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, parse_head, parse_neuron
from neuron_attribution.results import NeuronScore, PromotedSide
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

WRITTEN = {
    "24.1005": FfnNeuron(24, 1005),
    "24.e0.1005": FfnNeuron(24, 1005, 0),
    "3.e127.9": FfnNeuron(3, 9, 127),
    "10.3.20": AttentionNeuron(10, 3, 20),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_written_read_and_sent(text: str) -> None:
    neuron = WRITTEN[text]
    assert str(neuron) == text
    assert parse_neuron(text) == neuron
    assert neuron_from_proto(neuron_to_proto(neuron)) == neuron
    message = messages.NeuronScore()
    score = NeuronScore(neuron, 0.5, None, 1.0, None, PromotedSide.TOP)
    write_neuron_score(score, message)
    assert neuron_score_from_proto(message) == score


@pytest.mark.parametrize(
    ("text", "neuron"),
    [
        ("24_1005", FfnNeuron(24, 1005)),
        ("23_4_38", AttentionNeuron(23, 4, 38)),
        ("23_4_38_3", AttentionNeuron(23, 4, 38)),
    ],
)
def test_the_published_notebooks_are_understood(text: str, neuron: FfnNeuron | AttentionNeuron) -> None:
    """They write the source position behind an attention neuron."""
    assert parse_neuron(text) == neuron


@pytest.mark.parametrize("text", ["23.h4", "23.4"])
def test_a_head_is_read_where_only_heads_can_stand(text: str) -> None:
    assert parse_head(text) == Head(23, 4)
    assert str(Head(23, 4)) == "23.h4"


def test_a_head_is_told_from_a_neuron() -> None:
    assert parse_neuron("23.4") == FfnNeuron(23, 4)
    with pytest.raises(ValueError, match="a whole head, not a neuron"):
        parse_neuron("23.h4")
    with pytest.raises(ValueError, match=r"LAYER\.hHEAD"):
        parse_head("23.4.1")


@pytest.mark.parametrize(
    "text",
    ["1_2.3", "1_e2_3", "1_2_3_4_5", "1.2.3.4", "1.e.2", "e1.2", "1.e2", "1.e-1.2", "1.E2.3", "1.e2.3.4", "1.e٣.4"],
)
def test_what_is_no_neuron(text: str) -> None:
    with pytest.raises(ValueError, match=r"LAYER\.eEXPERT\.INDEX"):
        parse_neuron(text)


def test_an_expert_number_zero_is_an_expert() -> None:
    """Absent and zero are told apart: a client that knows no experts sends absent."""
    assert not neuron_to_proto(FfnNeuron(1, 2)).ffn.HasField("expert")
    assert neuron_to_proto(FfnNeuron(1, 2, 0)).ffn.HasField("expert")


def test_order_is_by_layer_then_expert_then_index() -> None:
    ordered = [FfnNeuron(0, 9), FfnNeuron(0, 5, 0), FfnNeuron(0, 1, 1), FfnNeuron(1, 0)]
    assert sorted({*ordered}) == ordered
    assert FfnNeuron(0, 5) < FfnNeuron(0, 5, 0)
