"""Refuses what would take a worker too long, and says what would not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import AttributeOptions, Part
from neuron_attribution.traces import SCREENED_PER_NODE

from neuron_attribution_server.tasks.tasks import AttributeTask, InterveneTask, ProjectTask, Task, TraceTask
from neuron_attribution_server.tasks.work_prices import WorkPredictor

Shorter = Callable[[int], Task]


@dataclass(frozen=True, slots=True)
class _Remedy:
    """A field that can be lowered: its value, what to do with a lower one, and the task that it makes."""

    field: str
    value: int
    advice: str
    shorter: Shorter
    least: int = 1
    """The lowest value there is."""


def check_seconds(task: Task, predictor: WorkPredictor, limit: float) -> None:
    """Refuse a task that may take over `limit` seconds by the prediction for its worst; 0 is no limit.

    Raises InvalidArgumentError that names a field and the largest value of it that would do.
    """
    seconds = predictor.most_seconds([task])
    if not limit or seconds <= limit:
        return
    field, advice = _advice(task, predictor, limit)
    raise InvalidArgumentError.of(
        field,
        f"this may take a worker about {seconds:.0f} seconds, over the limit of {limit:.0f} (request_seconds); "
        f"{advice}",
        reason="TAKES_TOO_LONG",
    )


def _advice(task: Task, predictor: WorkPredictor, limit: float) -> tuple[str, str]:
    """The first field that suffices by itself, and what to do with it."""
    remedies = list(_remedies(task))
    for remedy in remedies:
        largest = _largest(remedy, lambda shorter: predictor.most_seconds([shorter]) <= limit)
        if largest is not None:
            return remedy.field, remedy.advice.format(largest)
    fields = ", ".join(remedy.field for remedy in remedies)
    return remedies[0].field, f"no single field brings it below: lower several of {fields}, or shorten the prompt"


def _largest(remedy: _Remedy, fits: Callable[[Task], bool]) -> int | None:
    """The largest lower value that fits, by halving; None where not even the least does."""
    if remedy.value <= remedy.least or not fits(remedy.shorter(remedy.least)):
        return None
    low, high = remedy.least, remedy.value
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(remedy.shorter(middle)) else (low, middle)
    return low


def _remedies(task: Task) -> Iterator[_Remedy]:
    match task:
        case AttributeTask():
            yield from _attribution(task)
        case InterveneTask():
            yield from _intervention(task)
        case TraceTask():
            yield from _trace(task)
        case ProjectTask():
            yield _Remedy("neurons", len(task.neurons), "name at most {} at a time", _fewer_neurons(task))
            yield _Remedy("top_k", task.top_k, "with top_k at most {} it would do", _set(task, "top_k"))


def _attribution(task: AttributeTask) -> Iterator[_Remedy]:
    options = task.options
    yield _Remedy("exhaustive", int(options.exhaustive), "leave it unset", _option(task, "exhaustive", bool), 0)
    if task.generate:
        yield _Remedy("generate", task.generate, "generate at most {} tokens at a time", _set(task, "generate"))
    else:
        field, advice = "span" if task.in_prompt else "completion", "explain at most {} tokens at a time"
        yield _Remedy(field, len(task.explained), advice, lambda count: _explaining(task, count))
    parts = int(Part.HEAD_POSITIONS in options.parts)
    yield _Remedy("parts", parts, "leave out the head positions", lambda _: _without_positions(task), 0)
    for field, least in (("top_k", 1), ("projection_top_k", 0), ("query_sources", 1)):
        advice = f"with {field} at most {{}} it would do"
        yield _Remedy(field, getattr(options, field), advice, _option(task, field), least)


def _intervention(task: InterveneTask) -> Iterator[_Remedy]:
    yield _Remedy("generate", task.generate, "generate at most {} tokens at a time", _set(task, "generate"))
    advice = "send at most {} sets at a time"
    yield _Remedy("sets", len(task.sets), advice, lambda count: replace(task, sets=task.sets[:count]))


def _trace(task: TraceTask) -> Iterator[_Remedy]:
    options, advice = task.options, "with screened at most {} it would do"
    if options.measure:
        yield _Remedy("screened", task.screened, advice, lambda count: _screening(task, count), options.nodes)
    yield _Remedy(
        "nodes", options.nodes, "keep at most {}, with screened left out", lambda count: _keeping(task, count)
    )
    yield _Remedy("measure", int(options.measure), "set it to false", lambda _: _unmeasured(task), 0)
    field, advice = "span" if task.in_prompt else "completion", "explain at most {} tokens at a time"
    yield _Remedy(field, len(task.explained), advice, lambda count: _tracing(task, count))


def _screening(task: TraceTask, count: int) -> TraceTask:
    return replace(task, options=replace(task.options, screened=count))


def _keeping(task: TraceTask, count: int) -> TraceTask:
    """With so many nodes, and as many screened as such a request has by itself."""
    screened = SCREENED_PER_NODE * count if task.options.measure else None
    return replace(task, options=replace(task.options, nodes=count, screened=screened))


def _unmeasured(task: TraceTask) -> TraceTask:
    return replace(task, options=replace(task.options, measure=False, screened=None))


def _tracing(task: TraceTask, count: int) -> TraceTask:
    """With so many explained tokens, and of a completion no more."""
    dropped = 0 if task.in_prompt else len(task.explained) - count
    return replace(task, explained=task.explained[:count], token_ids=task.token_ids[: len(task.token_ids) - dropped])


def _set(task: Task, field: str) -> Shorter:
    def shorter(value: int) -> Task:
        changes: dict[str, int] = {field: value}
        return replace(task, **changes)  # type: ignore[arg-type]  # a field of each of these tasks

    return shorter


def _option(task: AttributeTask, field: str, kind: Callable[[int], object] = int) -> Shorter:
    def shorter(value: int) -> Task:
        changes: dict[str, object] = {field: kind(value)}
        return replace(task, options=replace(task.options, **changes))  # type: ignore[arg-type]  # a field of theirs

    return shorter


def _fewer_neurons(task: ProjectTask) -> Shorter:
    return lambda count: replace(task, neurons=task.neurons[:count])


def _explaining(task: AttributeTask, count: int) -> AttributeTask:
    """With so many explained tokens, and of another answer no more."""
    dropped = 0 if task.in_prompt else len(task.explained) - count
    ids = task.token_ids[: len(task.token_ids) - dropped]
    return replace(task, explained=task.explained[:count], token_ids=ids, contrast_answer=task.contrast_answer[:count])


def _without_positions(task: AttributeTask) -> AttributeTask:
    options: AttributeOptions = task.options
    return replace(task, options=replace(options, parts=options.parts - {Part.HEAD_POSITIONS}))
