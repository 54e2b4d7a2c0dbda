"""One fact: is it eligible, which neurons does each method name, and what is predicted without them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from neuron_attribution.client import Client
from neuron_attribution.comparing.answers import explanation_of, given
from neuron_attribution.errors import InvalidArgumentError, NeuronAttributionError
from neuron_attribution.evaluation.facts import Fact
from neuron_attribution.evaluation.first_tokens import FirstTokens
from neuron_attribution.evaluation.random_neurons import RandomNeurons
from neuron_attribution.evaluation.rows import Measured, Row
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Neuron
from neuron_attribution.requests import Intervention, Part, ScoringMethod
from neuron_attribution.results import Explanation, InterveneResult, ModelInfo, NeuronRanking, TokenPrediction

HIGHEST_RANK = 10
METHOD_NEURONS = 10
ATTENTION_VALUES, FFN_VALUES, QUERIES = 200, 100, 1000
QUERY_SOURCES = 30
METHODS = dict(zip("abcdefgh", ScoringMethod, strict=True))
"""The paper's letters."""
ATTEMPTS = 200
"""Of a request whose random neurons are drawn again: each refusal tells of many missing neurons."""
RANDOM, VALUES, RANDOM_VALUES = "random 10", "300 value neurons", "300 random neurons"
QUERY, RANDOM_QUERY = "1,000 query FFN neurons", "1,000 random FFN neurons"
VALUE_PARTS = (Part.LAYERS, Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS)
_REFUSED = re.compile(r"sets\[(\d+)\]\.interventions\[0\]\.neurons\[(\d+)\]")

Taken = Mapping[str, tuple[Neuron, ...]]
"""The neurons that are taken away, by what they are called."""


@dataclass(frozen=True)
class Protocol:
    """Evaluates facts on one service. `words` holds the words of each type; random neurons come from the seed."""

    client: Client
    info: ModelInfo
    words: Mapping[str, frozenset[str]]
    seed: int = 0

    def evaluate(self, fact: Fact) -> Row:
        """What is measured of a fact; an error of the service is part of it."""
        try:
            return self._evaluate(fact)
        except NeuronAttributionError as error:
            return _row(fact, "failed", f"{error.reason}: {error.message}")

    def _evaluate(self, fact: Fact) -> Row:
        target = self._first_tokens.of(fact.answer)
        reason = self._ineligible(fact, self._explained(fact, target, [Part.LAYERS]))
        if reason:
            return _row(fact, "ineligible", reason)
        values = self._explained(fact, target, VALUE_PARTS, 2 * ATTENTION_VALUES)
        queries = self._explained(fact, target, [Part.QUERY_FFN_NEURONS], QUERIES)
        ranked = self._ranked(fact, target, values, queries)
        taken, result = self._taken_away(fact, target, ranked)
        layers = given(values.layers, "layers")
        without = dict(zip(taken, (_measured(each.after.target) for each in result.results), strict=True))
        return Row(
            **_named(fact),
            status="eligible",
            original=_measured(result.before.target),
            without=without,
            attention_sum=float(layers.attention.sum()),
            ffn_sum=float(layers.ffn.sum()),
            layers=_layers(taken),
        )

    def _ineligible(self, fact: Fact, explanation: Explanation) -> str:
        """Why a fact does not count, or nothing: in the top 10, whatever is above the target is among the answers."""
        rank = explanation.target.rank
        if rank > HIGHEST_RANK:
            return f"the right token has rank {rank}"
        others = {self._first_tokens.of(word) for word in self.words[fact.type]} - {explanation.target.token.id}
        above = [item.token for item in explanation.predictions if item.rank < rank and item.token.id in others]
        return f"{above[0].text!r} of its type is above the right token" if above else ""

    @cached_property
    def _first_tokens(self) -> FirstTokens:
        return FirstTokens(self.client)

    @cached_property
    def _random_neurons(self) -> RandomNeurons:
        return RandomNeurons(self.info.sizes, self.info.layers)

    def _explained(
        self,
        fact: Fact,
        target: int,
        parts: Iterable[Part],
        top_k: int = METHOD_NEURONS,
        method: ScoringMethod = ScoringMethod.LOG_PROBABILITY_INCREASE,
    ) -> Explanation:
        answer = self.client.attribute(
            fact.prompt,
            target=target,
            parts=parts,
            top_k=top_k,
            scoring_method=method,
            projection_top_k=0,
            query_sources=QUERY_SOURCES,
        )
        return explanation_of(answer)

    def _ranked(self, fact: Fact, target: int, values: Explanation, queries: Explanation) -> Taken:
        """The neurons that the rankings name."""
        found = {letter: self._best(fact, target, values, method) for letter, method in METHODS.items()}
        attention = _best_of(values, "attention_value_neurons", ATTENTION_VALUES)
        ffn = _best_of(values, "ffn_value_neurons", FFN_VALUES)
        query = _best_of(queries, "query_ffn_neurons", QUERIES)
        return {**found, VALUES: attention + ffn, QUERY: query}

    def _taken_away(self, fact: Fact, target: int, ranked: Taken) -> tuple[Taken, InterveneResult]:
        """The neurons that are taken away, random ones too, and what is predicted without them.

        Random neurons that the service refuses, because their layer is narrower than others, are drawn again.
        """
        for attempt in range(ATTEMPTS):
            drawn = self._random(fact, ranked)
            taken = {**drawn, **ranked}
            sets = [[Intervention(neurons=neurons)] for neurons in taken.values()]
            try:
                return taken, self.client.intervene(fact.prompt, sets, target=target)
            except InvalidArgumentError as error:
                refused = _refused(error, list(drawn.values()))
                if refused is None or attempt == ATTEMPTS - 1:
                    raise
                self._random_neurons.refused(refused)
        raise AssertionError("the last attempt raises")

    def _random(self, fact: Fact, ranked: Taken) -> Taken:
        choice = random.Random(f"{self.seed} {fact.key}")
        count = sum(isinstance(neuron, AttentionNeuron) for neuron in ranked[VALUES])
        attention = self._random_neurons.attention(choice, count)
        return {
            RANDOM: self._random_neurons.ffn(choice, METHOD_NEURONS),
            RANDOM_VALUES: attention + self._random_neurons.ffn(choice, len(ranked[VALUES]) - count),
            RANDOM_QUERY: self._random_neurons.ffn(choice, QUERIES),
        }

    def _best(self, fact: Fact, target: int, values: Explanation, method: ScoringMethod) -> tuple[Neuron, ...]:
        if method is not ScoringMethod.LOG_PROBABILITY_INCREASE:
            values = self._explained(fact, target, [Part.FFN_VALUE_NEURONS], METHOD_NEURONS, method)
        return _best_of(values, "ffn_value_neurons", METHOD_NEURONS)


def _refused(error: InvalidArgumentError, sets: Sequence[Sequence[Neuron]]) -> Neuron | None:
    """The neuron of the first sets that an error is about."""
    for violation in error.violations:
        if found := _REFUSED.match(violation.field):
            number, place = map(int, found.groups())
            return sets[number][place] if number < len(sets) else None
    return None


def _row(fact: Fact, status: str, reason: str) -> Row:
    return Row(**_named(fact), status=status, reason=reason)


def _named(fact: Fact) -> dict[str, Any]:
    return {"key": fact.key, "prompt": fact.prompt, "answer": fact.answer, "type": fact.type}


def _measured(prediction: TokenPrediction) -> Measured:
    return Measured(prediction.probability, prediction.log_probability, prediction.rank)


def _best_of(explanation: Explanation, name: str, count: int) -> tuple[Neuron, ...]:
    """The first neurons of a ranking, each once: an attention neuron is ranked at each source position."""
    ranking: NeuronRanking = given(getattr(explanation, name), name)
    return tuple(dict.fromkeys(each.neuron for each in ranking.neurons))[:count]


def _layers(taken: Mapping[str, Sequence[Neuron]]) -> dict[str, dict[int, int]]:
    attention = [each.layer for each in taken[VALUES] if isinstance(each, AttentionNeuron)]
    ffn = [each.layer for each in taken[VALUES] if isinstance(each, FfnNeuron)]
    kinds = {"attention value": attention, "FFN value": ffn, "query FFN": [each.layer for each in taken[QUERY]]}
    return {name: dict(sorted(Counter(layers).items())) for name, layers in kinds.items()}
