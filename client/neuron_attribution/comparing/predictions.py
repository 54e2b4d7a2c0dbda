"""How two predictions are compared: what is asked of either side, and what the answers come to.

    1. both sides explain their prediction: layers, heads, both ends of the rankings of value neurons
    2. what one side's rankings lack is scored there by name
    3. while a neuron that neither side ranked could be among the largest differences, both rank twice as many
    4. the neurons that were found are projected into the vocabulary

The steps yield questions and are sent their answers: the synchronous and the asynchronous client share them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, Unpack, cast

import numpy as np

from neuron_attribution.comparing.answers import explanation_of, given, left_out
from neuron_attribution.comparing.difference_search import DifferenceSearch
from neuron_attribution.comparisons import ComparedSide, Comparison, DifferenceRanking, NeuronComparison
from neuron_attribution.conversations.messages import Prompt
from neuron_attribution.conversations.written import ConversationArguments, MessageLike, PromptLike, read_prompt
from neuron_attribution.convert.values import at_least_one, unsigned
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import FfnNeuron, Neuron
from neuron_attribution.requests import Direction, Intervention, Part
from neuron_attribution.results import (
    AttributeResult,
    LayerScores,
    Limits,
    ModelInfo,
    Projection,
    ProjectNeuronResult,
)
from neuron_attribution.transport import calls
from neuron_attribution.transport.calls import AttributeArguments, Call

FIRST_DEPTH = 64
"""How many neurons of each end the sides rank at first, or twice as many as are wanted."""

SIDES = (0, 1)
SIZES = ("layers", "heads", "head_size", "ffn_width", "experts", "expert_width")
COMMON = {
    "attention_neurons_over_positions": True,
    "top_k": 1,
    "projection_top_k": 0,
    "query_sources": 1,
    "head_top_k": 1,
}
"""Source positions of two prompts have nothing in common. What is not used stays within any server's limits."""
PARTS = {"ffn": Part.FFN_VALUE_NEURONS, "attention": Part.ATTENTION_VALUE_NEURONS}

Outcome = TypeVar("Outcome")
Question = tuple[int, Call[Any]]
"""A call to one side."""

Projections = Mapping[Neuron, Projection]

Steps = Generator[Sequence[Question], Any, Outcome]
"""Yields questions that may be asked together, is sent their answers in order, and returns what they come to."""


class CompareArguments(ConversationArguments, total=False):
    """What `compare` takes besides the prompts: fields of AttributeRequest and AttributeOptions, for both sides.

    `messages` may stand in place of the first prompt and `other_messages` in place of the second.
    `top_k` is how many neurons are returned for each direction and kind. `interventions` are made on the second side,
    whose scores are read with the first side's scale of the final norm where `freeze_scale` says so.
    """

    other_messages: Iterable[MessageLike]
    target: str | int | None
    contrast: str | int | None
    add_special_tokens: bool | None
    model: str
    top_k: int
    projection_top_k: int
    include_final_norm_bias: bool
    interventions: Iterable[Intervention]
    freeze_scale: bool


@dataclass
class _Side:
    """One side: what all its requests share, and its first answer."""

    prompt: Prompt
    fields: dict[str, Any]
    limits: Limits | None = None
    answer: AttributeResult | None = None

    def attribute(self, **fields: Unpack[AttributeArguments]) -> Call[AttributeResult]:
        return calls.attribute(self.prompt, **cast(AttributeArguments, {**self.fields, **fields}))

    @property
    def layers(self) -> LayerScores:
        assert self.answer is not None
        return given(explanation_of(self.answer).layers, "layers")


def compare(
    prompt: PromptLike | None,
    other_prompt: PromptLike | None,
    *,
    one_server: bool,
    **arguments: Unpack[CompareArguments],
) -> Steps[Comparison]:
    """The steps that compare two prompts, one prompt on two servers, or one prompt with and without interventions."""
    fields = cast(dict[str, Any], arguments)
    shared = {name: fields[name] for name in ConversationArguments.__annotations__ if name in fields}
    others = {**shared, "messages": fields.pop("other_messages")} if "other_messages" in fields else {}
    first = read_prompt(prompt, fields)
    second = first if other_prompt is None and not others else read_prompt(other_prompt, others, "other_prompt")
    if one_server and second == first and not arguments.get("interventions"):
        raise InvalidArgumentError.of(
            "other_prompt", "nothing differs; give another prompt, another server or interventions"
        )
    return _Comparing((first, second), one_server, dict(fields)).steps()


class _Comparing:
    """The state of one comparison."""

    def __init__(self, prompts: tuple[Prompt, Prompt], one_server: bool, arguments: dict[str, Any]) -> None:
        self._k = at_least_one(unsigned(arguments.pop("top_k", 10), "top_k"), "top_k")
        self._projection_top_k = unsigned(arguments.pop("projection_top_k", 10), "projection_top_k")
        self._model = arguments.get("model", "")
        self._one_server = one_server
        self._freeze_scale = bool(arguments.pop("freeze_scale", False))
        interventions = tuple(arguments.pop("interventions", ()))
        common = {**arguments, **COMMON}
        self._sides = (_Side(prompts[0], common), _Side(prompts[1], {**common, "interventions": interventions}))
        self._one_target = one_server and prompts[0] == prompts[1]
        if self._freeze_scale and not self._one_target:
            raise InvalidArgumentError.of(
                "freeze_scale", "is for one prompt with and without interventions, on one server; leave it out"
            )
        self._searches = {kind: DifferenceSearch(self._k) for kind in PARTS}

    def steps(self) -> Steps[Comparison]:
        """From the first question to the comparison."""
        models = yield [(side, calls.get_model(self._model)) for side in SIDES]
        self._take_models(models)
        limit = min(self._limits(side).top_k for side in SIDES)
        depth = min(limit, max(FIRST_DEPTH, 2 * self._k))
        self._take_first((yield from self._first(depth)))
        yield from self._score_missing()
        while depth < limit and (unsettled := self._unsettled()):
            depth = min(2 * depth, limit)
            answers = yield self._rankings(depth, unsettled)
            self._take_rankings(answers, unsettled)
            yield from self._score_missing()
        return (yield from self._projected(self._result()))

    def _take_models(self, models: Sequence[ModelInfo]) -> None:
        for name in SIZES:
            first, second = (getattr(model.sizes, name) for model in models)
            if first != second:
                raise InvalidArgumentError.of(
                    "other",
                    f"its model has another size: {name} {second} instead of {first}; compare models of one kind",
                )
        for side, model in zip(self._sides, models, strict=True):
            side.limits = model.limits
            for name, value in (("top_k", self._k), ("projection_top_k", self._projection_top_k)):
                if value > model.limits.top_k:
                    raise InvalidArgumentError.of(name, f"{value} is over the limit {model.limits.top_k}")

    def _limits(self, side: int) -> Limits:
        limits = self._sides[side].limits
        assert limits is not None
        return limits

    def _rankings(self, depth: int, kinds: Iterable[str], *parts: Part) -> list[Question]:
        wanted = (Part.LAYERS, *parts, *(PARTS[kind] for kind in kinds))
        return [
            (side, self._sides[side].attribute(parts=wanted, top_k=depth, direction=Direction.BOTH)) for side in SIDES
        ]

    def _first(self, depth: int) -> Steps[Sequence[AttributeResult]]:
        """The first answers. A prompt that is compared with itself has one target: that without interventions."""
        questions = self._rankings(depth, PARTS, Part.HEADS)
        first: list[AttributeResult] = yield questions[:1] if self._one_target else questions
        if not self._one_target:
            return first
        plain = explanation_of(first[0])
        self._sides[1].fields["target"] = plain.target.token.id
        if self._freeze_scale:
            self._sides[1].fields["final_norm_scales"] = (plain.final_norm_scale,)
        second: list[AttributeResult] = yield self._rankings(depth, PARTS, Part.HEADS)[1:]
        return first + second

    def _take_first(self, answers: Sequence[AttributeResult]) -> None:
        """Later questions are about the tokens that the first answers explain."""
        for side, answer in zip(self._sides, answers, strict=True):
            side.answer = answer
            side.fields["target"] = explanation_of(answer).target.token.id
        self._take_rankings(answers, PARTS)

    def _take_rankings(self, answers: Sequence[AttributeResult], kinds: Iterable[str]) -> None:
        for side, answer in enumerate(answers):
            explanation = explanation_of(answer)
            for kind in kinds:
                ends = (f"{kind}_value_neurons", f"{kind}_value_neurons_decreasing")
                highest, lowest = (given(getattr(explanation, name), name) for name in ends)
                self._searches[kind].take_rankings(side, highest, lowest)
            self._take_drift(side, answer)

    def _take_drift(self, side: int, answer: AttributeResult) -> None:
        """A side's passes give the same scores but for rounding; by how much is seen in those of its layers."""
        layers, first = given(explanation_of(answer).layers, "layers"), self._sides[side].layers
        pairs = ((layers.attention, first.attention), (layers.ffn, first.ffn))
        drift = max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)
        for search in self._searches.values():
            search.take_drift(side, drift)

    def _unsettled(self) -> list[str]:
        return [kind for kind, search in self._searches.items() if not search.settled]

    def _score_missing(self) -> Steps[None]:
        while missing := {side: named for side in SIDES if (named := self._missing(side))}:
            questions = [
                (side, self._sides[side].attribute(parts=(Part.LAYERS,), neurons=named))
                for side, named in missing.items()
            ]
            answers = yield questions
            for (side, named), answer in zip(missing.items(), answers, strict=True):
                self._take_scores(side, named, answer)

    def _missing(self, side: int) -> list[Neuron]:
        """What one request may name of it."""
        missing = [neuron for search in self._searches.values() for neuron in search.missing(side)]
        return missing[: self._limits(side).neurons]

    def _take_scores(self, side: int, named: Iterable[Neuron], answer: AttributeResult) -> None:
        scores = explanation_of(answer).neurons
        if not {score.neuron for score in scores}.issuperset(named):
            raise left_out("neurons")  # asked for again and again otherwise
        for kind, search in self._searches.items():
            search.take_scores(side, [score for score in scores if _kind(score.neuron) == kind])
        self._take_drift(side, answer)

    def _result(self) -> Comparison:
        first, second = (_compared_side(side.answer) for side in self._sides)
        return Comparison(first, second, self._searches["ffn"].result(), self._searches["attention"].result())

    def _projected(self, comparison: Comparison) -> Steps[Comparison]:
        """The comparison with what its neurons mean: in the model, or in each side's own."""
        if not self._projection_top_k:
            return comparison
        neurons = list(dict.fromkeys(item.neuron for ranking in _rankings_of(comparison) for item in ranking.neurons))
        asked = SIDES[:1] if self._one_server else SIDES
        answers = yield [(side, call) for side in asked for call in self._projections(side, neurons)]
        found = [(item.neuron, item.projection) for answer in answers for item in answer.projections]
        return _with_projections(comparison, dict(found[: len(neurons)]), dict(found[-len(neurons) :]))

    def _projections(self, side: int, neurons: Sequence[Neuron]) -> list[Call[ProjectNeuronResult]]:
        at_once = self._limits(side).neurons
        return [
            calls.project_neuron(neurons[start : start + at_once], top_k=self._projection_top_k, model=self._model)
            for start in range(0, len(neurons), at_once)
        ]


def _kind(neuron: Neuron) -> str:
    return "ffn" if isinstance(neuron, FfnNeuron) else "attention"


def _compared_side(answer: AttributeResult | None) -> ComparedSide:
    assert answer is not None
    explanation = explanation_of(answer)
    return ComparedSide(
        model=answer.model,
        tokens=answer.tokens,
        target=explanation.target,
        contrast=explanation.contrast,
        predictions=explanation.predictions,
        layers=given(explanation.layers, "layers"),
        head_scores=given(explanation.head_scores, "head_scores"),
    )


def _rankings_of(comparison: Comparison) -> list[DifferenceRanking]:
    kinds = (comparison.ffn_neurons, comparison.attention_neurons)
    return [ranking for kind in kinds for ranking in (kind.fell, kind.rose)]


def _with_projections(comparison: Comparison, first: Projections, second: Projections) -> Comparison:
    def of_ranking(ranking: DifferenceRanking) -> DifferenceRanking:
        neurons = [
            replace(
                item,
                first=replace(item.first, projection=first[item.neuron]),
                second=replace(item.second, projection=second[item.neuron]),
            )
            for item in ranking.neurons
        ]
        return replace(ranking, neurons=tuple(neurons))

    def of_kind(kind: NeuronComparison) -> NeuronComparison:
        return replace(kind, fell=of_ranking(kind.fell), rose=of_ranking(kind.rose))

    return replace(
        comparison,
        ffn_neurons=of_kind(comparison.ffn_neurons),
        attention_neurons=of_kind(comparison.attention_neurons),
    )
