"""Follows a prediction back: from the output's neurons, measured one by one, to the prompt's tokens.

1. a pass with everything recorded at every position, frozen into a linear model
2. the gradient of the real log odds, by which FFN neurons are screened
3. reruns without each neuron that passed; those of the largest effect are the graph's
4. edges and relevances in the frozen model, of which each node keeps the largest
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from neuron_attribution.neurons import FfnNeuron, Head
from neuron_attribution.results import Projection, PromotedSide, TokenPrediction
from neuron_attribution.traces import MOST_EDGES, Graph, TraceCoverage, TraceEdge, TraceNode, TraceNodeKind
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.host import to_host
from neuron_attribution_server.model.attribution.unembedding import Unembedding
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import CapturedStates, ExplainedRows
from neuron_attribution_server.model.engine.explanation.activity import Activity
from neuron_attribution_server.model.engine.explanation.finite import are_finite, check_finite
from neuron_attribution_server.model.engine.explanation.predictions import own_log_probabilities, predictions
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.explanation.value_rankings import side
from neuron_attribution_server.model.tracing.frozen.model import FrozenModel, frozen_model
from neuron_attribution_server.model.tracing.frozen.sweeps import Edges, Place, Relevances, edges, part_of, relevances
from neuron_attribution_server.model.tracing.gradients import RealGradients, real_gradients
from neuron_attribution_server.model.tracing.head_paths import (
    neuron_readers,
    neuron_writers,
    output_readers,
    strongest_heads,
    token_writers,
)
from neuron_attribution_server.model.tracing.measuring import without_each
from neuron_attribution_server.model.tracing.outputs import Output
from neuron_attribution_server.model.tracing.pruning import KeptEdge, carried, kept_edges
from neuron_attribution_server.model.tracing.screening import Candidate, candidates
from neuron_attribution_server.tasks.answers import TraceOutcome
from neuron_attribution_server.tasks.tasks import TraceTask

ALWAYS_ON = 0.5
"""The part of usual contexts in which a neuron is as strong that is on whatever is asked."""


@dataclass(frozen=True, slots=True, eq=False)
class _Predicted:
    """What is followed back, and what is known of it: gradients [E, d] of the frozen output and of the real one."""

    output: Output
    finals: Tensor
    frozen: Tensor
    real: Tensor
    value: float
    log_odds: float
    targets: tuple[TokenPrediction, ...]
    contrasts: tuple[TokenPrediction, ...]


@dataclass(frozen=True, slots=True)
class _Neuron:
    """A neuron that the graph keeps."""

    candidate: Candidate
    effect: float | None

    @property
    def place(self) -> Place:
        """Where it is."""
        return self.candidate.place


class Tracer:
    """Makes graphs of predictions."""

    def __init__(
        self,
        view: ModelView,
        unembedding: Unembedding,
        projector: Projector,
        activity: Activity | None,
    ) -> None:
        self._view = view
        self._unembedding = unembedding
        self._projector = projector
        self._activity = activity

    def trace(self, task: TraceTask, synchronize: Callable[[], None]) -> TraceOutcome:
        """The graph of a task. Raises FailedPreconditionError where the prompt's activations overflow."""
        began, start = time.time(), time.perf_counter()
        rows = ExplainedRows.from_counts([range(task.length)], self._view.device)
        captured = capture(self._view, [task.token_ids], rows)
        synchronize()
        middle = time.perf_counter()
        graph = self._graph(task, captured)
        synchronize()
        return TraceOutcome(
            token_ids=task.token_ids,
            graph=graph,
            forward=middle - start,
            scoring=time.perf_counter() - middle,
            batch_requests=1,
            batch_tokens=task.length,
            started=began,
        )

    def _graph(self, task: TraceTask, captured: CapturedStates) -> Graph:
        predicted = self._predicted(task, captured)
        positions = [token.position for token in task.explained]
        gradients = real_gradients(self._view, task.token_ids, positions, predicted.real)
        frozen = frozen_model(self._view, captured, task.options.subkey)
        screened = self._screened(task, frozen, gradients)
        neurons = self._measured(task, captured, screened, predicted, gradients)[: task.options.nodes]
        output = predicted.frozen.new_zeros(frozen.embeddings.shape)
        output.index_add_(0, torch.tensor(positions, device=output.device), predicted.frozen)
        places = [neuron.place for neuron in neurons]
        relevance = relevances(frozen, output)
        found = edges(frozen, output, places, places)
        measured = len(screened) if task.options.measure else 0
        existing = sum(layer.ffn.width for layer in self._view.layers) * (max(positions) + 1)
        counts = existing, len(screened), measured
        return self._assembled(task, predicted, (frozen, output), neurons, relevance, found, counts)

    def _predicted(self, task: TraceTask, captured: CapturedStates) -> _Predicted:
        device, count = self._view.device, len(task.explained)
        positions = torch.tensor([token.position for token in task.explained], device=device)
        finals = captured.inputs[-1][0, positions].float()
        check_finite(are_finite(self._unembedding, finals), task)
        log_probabilities = own_log_probabilities(self._unembedding, finals)
        own = log_probabilities.argmax(1).tolist()
        targets = [
            mine if token.target is None else token.target for token, mine in zip(task.explained, own, strict=True)
        ]
        asked = [targets] if task.contrast is None else [targets, [task.contrast] * count]
        named = predictions(self._projector, log_probabilities, torch.tensor(asked, device=device).T)
        output = Output(self._unembedding, torch.tensor(targets, device=device), task.contrast)
        frozen, real = output.gradients(finals)
        return _Predicted(
            output,
            finals,
            frozen,
            real,
            value=float((frozen * finals).sum()),
            log_odds=float(output.value(finals[None])[0]),
            targets=tuple(row[0] for row in named),
            contrasts=tuple(row[1] for row in named) if task.contrast is not None else (),
        )

    def _screened(self, task: TraceTask, frozen: FrozenModel, gradients: RealGradients) -> list[Candidate]:
        """The neurons that pass the screening, the strongest first."""
        last, wanted = task.explained[-1].position, task.screened
        if not task.options.leave_out_always_on or self._activity is None:
            return candidates(self._view, frozen, gradients, last, wanted)
        asked = 2 * wanted
        while True:
            found = candidates(self._view, frozen, gradients, last, asked)
            kept = [each for each, activity in zip(found, self._activities(found), strict=True) if activity < ALWAYS_ON]
            if len(kept) >= wanted or len(found) < asked:
                return kept[:wanted]
            asked *= 2

    def _activities(self, found: Sequence[Candidate]) -> list[float]:
        """The part of usual contexts in which each is as strong; at a first token, of contexts' first tokens."""
        assert self._activity is not None
        at_first = [not each.place.position for each in found]
        named = [(self._named(each.place), each.activation) for each in found]
        pairs = list(zip(at_first, named, strict=True))
        first = iter(self._activity.parts_of_first([neuron for is_first, neuron in pairs if is_first]))
        others = iter(self._activity.parts([neuron for is_first, neuron in pairs if not is_first]))
        return [next(first if is_first else others) for is_first in at_first]

    def _named(self, place: Place) -> FfnNeuron:
        return self._view.ffn_neuron(place.layer, place.unit)

    def _measured(
        self,
        task: TraceTask,
        captured: CapturedStates,
        screened: Sequence[Candidate],
        predicted: _Predicted,
        gradients: RealGradients,
    ) -> list[_Neuron]:
        """Those that passed, with their effects where these are measured; the strongest first."""
        if not task.options.measure:
            return [_Neuron(each, None) for each in screened]
        effects: dict[int, float] = {}
        reruns = without_each(
            self._view,
            task.token_ids,
            captured.inputs,
            [each.place for each in screened],
            [token.position for token in task.explained],
            gradients.returned,
        )
        for which, finals in reruns:
            values = predicted.output.value(finals).tolist()
            before, after = (predicted.log_odds, values) if len(values) == len(which) else (values[0], values[1:])
            effects |= {number: before - value for number, value in zip(which, after, strict=True)}
        found = [_Neuron(each, effects[number]) for number, each in enumerate(screened)]
        return sorted(found, key=lambda neuron: -abs(neuron.effect or 0.0))

    def _assembled(
        self,
        task: TraceTask,
        predicted: _Predicted,
        traced: tuple[FrozenModel, Tensor],
        neurons: Sequence[_Neuron],
        relevance: Relevances,
        found: Edges,
        counts: tuple[int, int, int],
    ) -> Graph:
        visible = task.explained[-1].position + 1
        columns = torch.cat([found.neurons, found.tokens[:, :visible], found.biases], 1)
        contributions, magnitudes, others = to_host([columns, found.magnitudes, found.sums.clone()])
        kept = kept_edges(contributions, magnitudes, task.options.edge_share, MOST_EDGES)
        activations = [predicted.value, *(neuron.candidate.activation for neuron in neurons)]
        for edge in kept:
            others[edge.target] -= edge.contribution
        biases = relevance.biases.tolist()
        used = {edge.source for edge in kept}
        first = len(neurons) + visible
        layers = [layer for layer, bias in enumerate(biases) if bias or first + layer in used]
        nodes = [
            TraceNode(TraceNodeKind.OUTPUT, predicted.value, predicted.value, other=float(others[0])),
            *self._neuron_nodes(task, traced[0], neurons, relevance, others[1:].tolist()),
            *(
                TraceNode(TraceNodeKind.TOKEN, 1.0, value, position=position)
                for position, value in enumerate(relevance.tokens[:visible].tolist())
            ),
            *(TraceNode(TraceNodeKind.BIAS, 1.0, biases[layer], layer=layer) for layer in layers),
        ]
        numbers = {first + layer: 1 + first + place for place, layer in enumerate(layers)}
        numbers |= {column: 1 + column for column in range(first)}
        heads: list[tuple[Head | None, float | None]] = [(None, None)] * len(kept)
        if task.options.heads:
            heads = _heads(*traced, [neuron.place for neuron in neurons], task, kept)
        paths = carried(kept, activations, [neuron.place.layer for neuron in neurons])
        existing, screened, measured = counts
        total = float(magnitudes.sum())
        return Graph(
            positions=tuple(token.position for token in task.explained),
            targets=predicted.targets,
            contrasts=predicted.contrasts,
            output=predicted.value,
            log_odds=predicted.log_odds,
            nodes=tuple(nodes),
            edges=tuple(
                TraceEdge(numbers[edge.source], edge.target, edge.contribution, edge.share, *head)
                for edge, head in zip(kept, heads, strict=True)
            ),
            coverage=TraceCoverage(
                neuron_positions=existing,
                screened=screened,
                measured=measured,
                output_edges=_share(sum(edge.contribution for edge in kept if not edge.target), predicted.value),
                output_paths=_share(paths, predicted.value),
                edges=_share(sum(abs(edge.contribution) for edge in kept), total),
            ),
        )

    def _neuron_nodes(
        self,
        task: TraceTask,
        frozen: FrozenModel,
        neurons: Sequence[_Neuron],
        relevance: Relevances,
        others: Sequence[float],
    ) -> list[TraceNode]:
        named = [self._named(neuron.place) for neuron in neurons]
        count = task.options.projection_top_k
        projections: dict[FfnNeuron, Projection] = {}
        if count:
            found = self._projector.subvalues(named, count)
            projections = {neuron: found[neuron] for neuron in named}
        activities: Sequence[float | None] = [None] * len(neurons)
        if self._activity is not None:
            activities = self._activities([neuron.candidate for neuron in neurons])
        return [
            TraceNode(
                TraceNodeKind.FFN_NEURON,
                neuron.candidate.activation,
                _relevance(frozen, relevance, neuron.place),
                neuron=name,
                position=neuron.place.position,
                effect=neuron.effect,
                gradient=neuron.candidate.gradient,
                projection=projections.get(name),
                promoted_side=side(neuron.candidate.activation) if count else PromotedSide.UNKNOWN,
                always_on=activity is not None and activity >= ALWAYS_ON,
                activity=activity,
                other=other,
            )
            for neuron, name, activity, other in zip(neurons, named, activities, others, strict=True)
        ]


def _heads(
    frozen: FrozenModel, output: Tensor, places: Sequence[Place], task: TraceTask, kept: Sequence[KeptEdge]
) -> list[tuple[Head | None, float | None]]:
    """The head that carries most of each edge from an earlier position, and what it carries."""
    positions = [token.position for token in task.explained]
    writers = neuron_writers(frozen, places).and_also(token_writers(frozen, positions[-1] + 1))
    readers = output_readers(frozen, output, positions).and_also(neuron_readers(frozen, places))
    rows = [range(len(positions)), *([len(positions) + place] for place in range(len(places)))]
    pairs = [
        (edge.source, reader, number)
        for number, edge in enumerate(kept)
        if edge.source < len(writers.positions)
        for reader in rows[edge.target]
    ]
    columns = torch.tensor(pairs, dtype=torch.long, device=output.device).reshape(-1, 3).unbind(1)
    found = strongest_heads(frozen, writers, readers, (columns[0], columns[1], columns[2]), len(kept))
    arrays = to_host([found.layers, found.heads, found.contributions])
    named = zip(*(array.tolist() for array in arrays), strict=True)
    return [(Head(layer, head), carries) if carries else (None, None) for layer, head, carries in named]


def _relevance(frozen: FrozenModel, found: Relevances, place: Place) -> float:
    part = part_of(frozen, place)
    number = frozen.layers[place.layer].ffn.index(part)
    return float(found.ffn[place.layer][number][part.place(place.position), place.unit - part.first])


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
