"""Servers that leave out what they were asked for: those who build on it say so, and neither crash nor ask for ever."""

import pytest
from client.fake_service import EXPLANATION, INFO, FakeService, serving
from neuron_attribution import Client, InternalError
from neuron_attribution.evaluation.facts import Fact
from neuron_attribution.evaluation.protocol import Protocol

OTHER = "The sea is"


class ForgetfulService(FakeService):
    """Answers all that can be asked for, but for one field."""

    def __init__(self, forgotten):
        super().__init__()
        self._forgotten = forgotten

    def Attribute(self, request, context):
        answer = super().Attribute(request, context)
        [explanation] = answer.explanations
        explanation.attention_value_neurons_decreasing.CopyFrom(explanation.attention_value_neurons)
        if request.prompt.text == OTHER:
            explanation.ffn_value_neurons.neurons[0].neuron.ffn.index += 1  # to be asked for on the other side
        if self._forgotten == "the explanation":
            answer.ClearField("explanations")
        else:
            explanation.ClearField(self._forgotten)
        return answer

    def Tokenize(self, request, context):
        answer = super().Tokenize(request, context)
        answer.tokens[0].token.id = EXPLANATION.target.token.id
        return answer


COMPARED = ("layers", "ffn_value_neurons", "attention_value_neurons_decreasing", "neurons", "the explanation")
EVALUATED = ("layers", "ffn_value_neurons", "attention_value_neurons", "query_ffn_neurons", "the explanation")


@pytest.mark.parametrize("forgotten", COMPARED)
def test_a_comparison_of_incomplete_answers_fails_by_name(forgotten):
    with (
        serving(ForgetfulService(forgotten)) as address,
        Client(address) as client,
        pytest.raises(InternalError, match=f"the server left out {forgotten}") as failed,
    ):
        client.compare("The sky is", OTHER)
    assert failed.value.reason == "INCOMPLETE_ANSWER"


@pytest.mark.parametrize("forgotten", EVALUATED)
def test_an_evaluation_of_incomplete_answers_fails_for_that_fact(forgotten):
    words = {"color": frozenset(["blue"])}
    with serving(ForgetfulService(forgotten)) as address, Client(address) as client:
        row = Protocol(client, INFO, words).evaluate(Fact("The sky is", "blue", "color"))
    assert (row.status, row.reason) == (
        "failed",
        f"INCOMPLETE_ANSWER: the server left out {forgotten}, which was asked for",
    )
