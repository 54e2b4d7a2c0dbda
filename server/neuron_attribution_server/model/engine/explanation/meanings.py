"""What the returned neurons mean: their projections, where the explained token stands in them, how usual they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

from neuron_attribution.neurons import FfnNeuron, Neuron
from neuron_attribution.results import Explanation, NeuronRanking, NeuronScore, ProjectedRank, Projection, RankingName

from neuron_attribution_server.model.engine.explanation.activity import Activity
from neuron_attribution_server.model.engine.explanation.projector import Projector

Change = Callable[[NeuronScore], NeuronScore]


def with_projections(
    projector: Projector, explanations: Sequence[Explanation], counts: Sequence[int]
) -> list[Explanation]:
    """Explanations whose neurons are projected into so many tokens each: one product for those of one count."""
    changed = list(explanations)
    for count in sorted(set(counts) - {0}):
        places = [place for place, k in enumerate(counts) if k == count]
        asked = [(_tokens(changed[place]), list(dict.fromkeys(_neurons(changed[place])))) for place in places]
        pairs = [(neuron, tokens) for tokens, neurons in asked for neuron in neurons]
        found = iter(projector.described(pairs, count))
        for place, (_, neurons) in zip(places, asked, strict=True):
            changed[place] = _changed(changed[place], _projected({neuron: next(found) for neuron in neurons}))
    return changed


def with_activity(activity: Activity | None, explanations: Sequence[Explanation]) -> list[Explanation]:
    """Explanations whose FFN value neurons say in what part of usual contexts they are as strong."""
    if activity is None:
        return list(explanations)
    scores = [score for each in explanations for score in _scores(each) if _has_activity(score)]
    parts = iter(activity.parts([(score.neuron, score.coefficient) for score in scores]))

    def change(score: NeuronScore) -> NeuronScore:
        return replace(score, activity=next(parts)) if _has_activity(score) else score

    return [_changed(each, change) for each in explanations]


def _has_activity(score: NeuronScore) -> bool:
    return isinstance(score.neuron, FfnNeuron) and bool(score.coefficient)


def _tokens(explanation: Explanation) -> tuple[int, ...]:
    predictions = (explanation.target, explanation.contrast)
    return tuple(prediction.token.id for prediction in predictions if prediction is not None)


def _projected(found: dict[Neuron, tuple[Projection, tuple[ProjectedRank, ...]]]) -> Change:
    def change(score: NeuronScore) -> NeuronScore:
        projection, (target, *contrast) = found[score.neuron]
        return replace(score, projection=projection, target=target, contrast=contrast[0] if contrast else None)

    return change


def _changed(explanation: Explanation, change: Change) -> Explanation:
    """An explanation with its neurons changed, in the order of `_scores`."""
    fields: dict[str, Any] = {
        name: replace(ranking, neurons=tuple(map(change, ranking.neurons))) for name, ranking in _rankings(explanation)
    }
    return replace(explanation, **fields, neurons=tuple(map(change, explanation.neurons)))


def _rankings(explanation: Explanation) -> Iterator[tuple[str, NeuronRanking]]:
    for name in get_args(RankingName):
        found = getattr(explanation, name)
        if found is not None:
            yield name, found


def _scores(explanation: Explanation) -> Iterator[NeuronScore]:
    for _, ranking in _rankings(explanation):
        yield from ranking.neurons
    yield from explanation.neurons


def _neurons(explanation: Explanation) -> list[Neuron]:
    return [score.neuron for score in _scores(explanation)]
