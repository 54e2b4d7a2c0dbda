"""How long a worker will take for what is asked, predicted from counts of the work in it.

Each kind of work has a price in seconds, which is measured when the model is loaded and corrected by every batch that
runs since. The counts are those of the method's steps: what depends on the prompt itself (how many candidates settle a
ranking, how many source positions matter) is counted as it mostly is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from math import ceil

from neuron_attribution.requests import AttributeOptions, Direction, InterventionSet, Part, ScoringMethod, Side
from neuron_attribution.results import ModelSizes

from neuron_attribution_server.tasks.tasks import (
    QUERY_PARTS,
    AttributeTask,
    InterveneTask,
    ProjectTask,
    Task,
    TraceTask,
    generated_at_once,
)

SPARE_CANDIDATES = 8
"""Neurons of a ranking that are scored beyond those that are returned."""
FALLING = 2
"""How many times as many are scored for a ranking of decreases, whose bounds are looser."""
FALLING_BY_GIVEN_SCALES = 3 * FALLING
"""The same where the final norm's scales are given: with a quarter of its own they are two to four times as many."""

FALLING_TOGETHER = 4 * FALLING
"""The same of tokens together, whose bounds add up: of the demo model 3 to 11 times as many as for increases."""

VALUE_PARTS = frozenset({Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS})


class Work(Enum):
    """A kind of work, and what is counted of it."""

    BATCH = "batches"
    TOKEN = "tokens through the model, padding included"
    PAIR = "pairs of positions in attention"
    STEP = "generated tokens, those of sequences that generate together once"
    GROUP = "groups of explained tokens that are scored together"
    SEARCH = "searches for value neurons of such a group"
    ROW = "explained tokens"
    VECTOR = "vectors scored against the vocabulary"
    POSITION = "source positions of heads, some of them too weak to be scored"
    MULTIPLE = "further multiples of a vector scored against the vocabulary"
    RANK = "vectors whose target is ranked in the vocabulary"
    RIVAL = "vectors whose target may have to be ranked, which a sample decides"
    SAMPLE = "rankings whose vectors are compared with a sample of the vocabulary"
    BOUND = "bounds of neurons"
    PLACE = "places at which query neurons are read"
    SOURCE = "value neurons that query parts start from"
    PROJECTION = "vectors projected into the vocabulary"
    WRITTEN = "projected tokens written into answers"
    NEURON = "neurons ranked or looked up"
    CHANGE = "neurons, heads and layers changed"
    PATTERN = "attention weights written into answers"
    SWEEP = "tokens of targets that traces sweep back through every layer"
    LAYER = "layers that traces begin with, pass by pass"
    STATE = "sequences whose predictions are compared"


Counts = Mapping[Work, int]


def work_of(tasks: Sequence[Task], sizes: ModelSizes) -> Counts:
    """The work of one batch of tasks."""
    counts: Counter[Work] = Counter({Work.BATCH: 1})
    attributions = [task for task in tasks if isinstance(task, AttributeTask)]
    passes = [task for task in tasks if isinstance(task, AttributeTask | InterveneTask)]
    longest = max((task.length for task in passes), default=0)
    sequences = sum(task.sequences for task in passes)
    counts[Work.TOKEN] += longest * sequences
    counts[Work.PAIR] += sum(task.sequences * task.length**2 for task in passes)
    for group, task in {_group(task): task for task in attributions}.items():
        count = task.rows if group is task and not task.options.aggregate else 1
        counts[Work.GROUP] += count
        counts[Work.SEARCH] += count * _searches(task)
    for each in tasks:
        counts.update(_own_work(each, sizes))
    return counts


def _group(task: AttributeTask) -> object:
    """What tasks share that are scored together; the task itself where each of its tokens is scored alone."""
    options = task.options
    if task.reproducible:
        return task
    return task.contrast is None, options.scoring_method, options.include_final_norm_bias


def _searches(task: AttributeTask) -> int:
    """One for what is asked for, and one for where query parts start from; they share it where both use one score."""
    options = task.options
    asked = bool(options.parts & VALUE_PARTS)
    sources = bool(options.parts & QUERY_PARTS) and not options.query_from
    if options.scoring_method is ScoringMethod.LOG_PROBABILITY_INCREASE:
        return int(asked or sources)
    return asked + sources


def _own_work(task: Task, sizes: ModelSizes) -> Counts:
    match task:
        case AttributeTask():
            return _attribution(task, sizes)
        case InterveneTask():
            return _intervention(task)
        case ProjectTask():
            return _projection(task)
        case TraceTask():
            return _trace(task, sizes)


def _trace(task: TraceTask, sizes: ModelSizes) -> Counts:
    """A pass and its gradient, sweeps of the output and of every node, reruns of two layers in five on average."""
    options, length, rows = task.options, task.length, task.rows
    reruns, passes = task.screened * options.measure, 4 + task.rerun_passes
    return {
        Work.BATCH: 1,
        Work.TOKEN: 4 * length + 2 * reruns * length // 5,
        Work.PAIR: (4 + 2 * reruns // 5) * length**2,
        Work.GROUP: 2,
        Work.VECTOR: (3 + reruns) * rows,
        Work.SWEEP: length * (2 + options.nodes // 2 + options.heads * options.nodes // 8),
        Work.LAYER: sizes.layers * passes,
        Work.CHANGE: reruns,
        Work.PROJECTION: options.nodes * bool(options.projection_top_k),
        Work.WRITTEN: 2 * options.nodes * options.projection_top_k,
        Work.NEURON: options.nodes,
    }


def _projection(task: ProjectTask) -> Counts:
    count = len(task.neurons)
    looked_up = 0 if task.side is Side.SUBVALUE and task.through is None else count
    return {Work.PROJECTION: count, Work.WRITTEN: 2 * count * task.top_k, Work.NEURON: count + looked_up}


def _intervention(task: InterveneTask) -> Counts:
    named = sum(map(_named, task.sets))
    together = generated_at_once(task.length)
    groups = ceil(task.sequences / together) if task.generate else 0
    return {
        Work.STATE: task.sequences,
        Work.CHANGE: named,
        Work.STEP: groups * task.generate,
        Work.TOKEN: groups * together * task.length,
    }


def _named(interventions: InterventionSet) -> int:
    return sum(len(each.neurons) + len(each.heads) + len(each.layers) for each in interventions)


def _attribution(task: AttributeTask, sizes: ModelSizes) -> Counts:
    options, rows = task.options, task.rows
    counts: Counter[Work] = Counter({Work.ROW: rows, Work.STEP: task.generate})
    counts[Work.TOKEN] += len(task.token_ids) if task.generate else 0
    if rows > task.explanations:
        for kind, count in _scored_row(task, sizes).items():
            counts[kind] += (rows - task.explanations) * count
    if task.explanations:
        for kind, count in _row(task, sizes).items():
            counts[kind] += task.explanations * count
    if options.aggregate:
        counts.update(_together(task, sizes))
    counts[Work.CHANGE] += _named(options.interventions)
    return counts


def _row(task: AttributeTask, sizes: ModelSizes) -> Counts:
    """The work of one explained token."""
    options = task.options
    detailed, named = task.detailed_heads(sizes.layers * sizes.heads), task.named_neurons
    counts: Counter[Work] = Counter(_scored_row(task, sizes))
    if task.contrast is None:
        counts[Work.POSITION] += detailed * task.length
    counts.update(_rankings(task, sizes))
    counts.update(_queries(task))
    counts[Work.NEURON] += named
    if Part.ATTENTION_PATTERNS in options.parts:
        counts[Work.PATTERN] += sizes.layers * sizes.heads * task.length
    if options.projection_top_k:
        counts[Work.PROJECTION] += named
        counts[Work.WRITTEN] += 2 * named * options.projection_top_k
    if options.position_projection_top_k:
        shown = 3 * detailed * min(options.top_k, task.length)
        counts[Work.PROJECTION] += shown
        counts[Work.WRITTEN] += 2 * shown * options.position_projection_top_k
    return counts


def _scored_row(task: AttributeTask, sizes: ModelSizes) -> Counts:
    """The part of it that a token needs without an explanation of its own: its base states, heads and named neurons."""
    if task.contrast is not None:
        return {}
    options = task.options
    bases = _bases(options) * (2 * sizes.layers + 1)
    return {Work.VECTOR: bases + _heads(options, sizes) + len(options.neurons)}


def _together(task: AttributeTask, sizes: ModelSizes) -> Counts:
    """The work of explained tokens together: of each neuron that is scored, a multiple of a vector for each token.

    So it is with what heads take from each position, about half of which are too weak to be scored.
    """
    options, linear = task.options, task.contrast is not None
    counts: Counter[Work] = Counter({Work.NEURON: task.summed_neurons})
    for part, units in _value_parts(sizes).items():
        if part not in task.summed_parts:
            continue
        over = part is Part.FFN_VALUE_NEURONS or task.sums_over_positions
        total = units * (1 if over else task.length)
        for sign in _signs(options):
            counts[Work.BOUND] += total + units * task.rows
            scored = 0 if linear else min(_scored(sign, options.top_k, options, FALLING_TOGETHER), total)
            counts[Work.VECTOR] += scored
            counts[Work.MULTIPLE] += (task.rows - 1) * scored
    if not linear:
        positions = task.detailed_heads(sizes.layers * sizes.heads) * task.length
        counts[Work.POSITION] += positions
        counts[Work.MULTIPLE] += (task.rows - 1) * positions // 2
    if options.projection_top_k:
        counts[Work.PROJECTION] += task.summed_neurons
        counts[Work.WRITTEN] += 2 * task.summed_neurons * options.projection_top_k
    return counts


def _signs(options: AttributeOptions) -> tuple[int, ...]:
    """The ends of rankings that are asked for."""
    return {Direction.INCREASE: (1,), Direction.DECREASE: (-1,), Direction.BOTH: (1, -1)}[options.direction]


def _scored(sign: int, k: int, options: AttributeOptions, falling: int = FALLING) -> int:
    """How many neurons are mostly scored for the k best."""
    if options.final_norm_scales:
        falling = max(falling, FALLING_BY_GIVEN_SCALES)
    return (k + SPARE_CANDIDATES) * (1 if sign > 0 else falling)


def _bases(options: AttributeOptions) -> int:
    """How often the base states are scored: their values, their slopes, and those of an empty residual stream."""
    if options.parts <= {Part.ATTENTION_PATTERNS} and not options.neurons:
        return 0
    return 4 if options.scoring_method is ScoringMethod.LOG_PROBABILITY else 2


def _heads(options: AttributeOptions, sizes: ModelSizes) -> int:
    asked = {Part.HEADS, Part.HEAD_POSITIONS} & options.parts
    return sizes.layers * sizes.heads if asked else 0


_RANKED = ScoringMethod.RECIPROCAL_RANK, ScoringMethod.COEFFICIENT_RECIPROCAL_RANK
_BOUNDED = (
    ScoringMethod.LOG_PROBABILITY_INCREASE,
    ScoringMethod.LOG_PROBABILITY,
    ScoringMethod.PROBABILITY_INCREASE,
)


def _rankings(task: AttributeTask, sizes: ModelSizes) -> Counts:
    """The searches for value neurons: those that are asked for, and those that query parts start from."""
    options = task.options
    counts: Counter[Work] = Counter()
    for part, units in _value_parts(sizes).items():
        positions = _positions(part, task)
        asked = part in options.parts
        ends = dict.fromkeys(_signs(options) if asked else (), options.top_k)
        own = options.scoring_method is ScoringMethod.LOG_PROBABILITY_INCREASE
        if _is_source(part, options):
            if own:
                ends[1] = max(ends.get(1, 0), options.query_sources)
            else:
                counts.update(_search(1, options.query_sources, units, _source_positions(part, task), task))
        for sign, k in ends.items():
            if options.scoring_method in _BOUNDED:
                counts.update(_search(sign, k, units, positions, task))
            else:
                counts.update(_static_search(sign, units, positions, options))
    return counts


def _search(sign: int, k: int, units: int, positions: int, task: AttributeTask) -> Counts:
    if task.options.exhaustive and task.contrast is None:
        return {Work.VECTOR: units, Work.MULTIPLE: units * (positions - 1)}
    total, scored = units * positions, _scored(sign, k, task.options)
    return {Work.BOUND: total, Work.VECTOR: 0 if task.contrast is not None else min(scored, total)}


def _static_search(sign: int, units: int, positions: int, options: AttributeOptions) -> Counts:
    if options.scoring_method not in _RANKED:
        return {Work.BOUND: units * positions}
    if sign < 0 or options.exhaustive:
        return {Work.BOUND: units * positions, Work.RANK: units}
    # A target that hardly any neuron promotes leaves ranks that a sample does not tell apart: up to all are computed.
    return {Work.BOUND: units * positions, Work.SAMPLE: 1, Work.RIVAL: units}


def _value_parts(sizes: ModelSizes) -> dict[Part, int]:
    """The parts that rank value neurons, and the units of each."""
    ffn = sizes.ffn_width + sizes.experts * sizes.expert_width
    return {
        Part.FFN_VALUE_NEURONS: sizes.layers * ffn,
        Part.ATTENTION_VALUE_NEURONS: sizes.layers * sizes.heads * sizes.head_size,
    }


def _positions(part: Part, task: AttributeTask) -> int:
    if part is Part.FFN_VALUE_NEURONS or task.options.attention_neurons_over_positions:
        return 1
    return task.length


def _source_positions(part: Part, task: AttributeTask) -> int:
    return 1 if part is Part.FFN_VALUE_NEURONS else task.length


def _is_source(part: Part, options: AttributeOptions) -> bool:
    if options.query_from:
        return False
    if Part.QUERY_LAYERS in options.parts:
        return True
    return part is Part.ATTENTION_VALUE_NEURONS and Part.QUERY_FFN_NEURONS in options.parts


def _queries(task: AttributeTask) -> Counts:
    options, sources = task.options, task.query_sources
    layers, neurons = Part.QUERY_LAYERS in options.parts, Part.QUERY_FFN_NEURONS in options.parts
    return {
        Work.SOURCE: sources * (2 * layers + neurons),
        Work.PLACE: min(sources, task.length) if neurons else 0,
        Work.VECTOR: sources if options.query_from and (layers or neurons) and task.contrast is None else 0,
    }
