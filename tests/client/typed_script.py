"""What a checker makes of the client in a user's script; test_display.py runs it."""

from typing import assert_type

import pandas
from neuron_attribution import AttributeResult, Client, Explanation, NeuronRanking


def script(client: Client) -> pandas.DataFrame:
    result = client.attribute("The sky is", top_k=5, direction="both")
    assert_type(result, AttributeResult)
    explanation = result.explanations[0]
    assert_type(explanation, Explanation)
    ranking = explanation.ffn_value_neurons
    assert_type(ranking, NeuronRanking | None)
    assert ranking is not None
    assert_type(ranking.neurons[0].score, float)
    assert_type(ranking.to_dataframe(), pandas.DataFrame)
    assert_type(explanation.ranking("query_ffn_neurons"), NeuronRanking)
    return result.to_dataframe()


def mistaken(client: Client) -> None:
    client.attribute("The sky is", top="5")  # an error
    print(client.attribute("The sky is").explanation)  # an error
    print(client.attribute("The sky is").explanations[0].ranking("heads"))  # an error
