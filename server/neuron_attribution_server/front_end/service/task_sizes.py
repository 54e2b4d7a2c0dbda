"""About how many bytes a task takes, and its answer will have: so much room is asked for before it is computed."""

from __future__ import annotations

from collections.abc import Iterable

from neuron_attribution.requests import Intervention, Part
from neuron_attribution.results import ModelSizes
from neuron_attribution.traces import MOST_EDGES

from neuron_attribution_server.tasks.tasks import AttributeTask, InterveneTask, ProjectTask, Task, TraceTask

_TOKEN_ID = 40
_NAME = 160
"""A neuron, a head, a layer's part or an explained token of a task."""
_INTERVENTION = 360
"""An intervention, beside what it names."""
_TOKEN = 40
"""A token of an answer with its text, scores, and what protobuf puts around them."""
_NAMED = 64
"""A neuron, a head or a component of an answer with its scores, without what it projects to."""
_STANDING = 28
"""Where the target and the contrast stand in a neuron's projection, and how usual the neuron is."""
_NODE = 80
"""A node of a graph with its scores, without what it projects to."""
_EDGE = 40
"""An edge of a graph, and the head that carries it."""
_PREDICTIONS = 13 * _TOKEN
"""The target, the same behind a space, the contrast and the most probable tokens of a prediction."""
_FLOAT = 4
_TOKEN_SCORES = 2 * _FLOAT
"""What a neuron of several tokens together has of each."""


def task_bytes(task: Task) -> int:
    """Bytes that a task takes in memory."""
    if isinstance(task, ProjectTask):
        return _NAME * len(task.neurons)
    if isinstance(task, InterveneTask):
        return _TOKEN_ID * len(task.token_ids) + sum(map(_interventions_bytes, task.sets))
    if isinstance(task, TraceTask):
        return _TOKEN_ID * len(task.token_ids) + _NAME * len(task.explained)
    names = len(task.explained) + len(task.contrast_answer) + len(task.options.neurons) + len(task.options.query_from)
    return _TOKEN_ID * len(task.token_ids) + _NAME * names + _interventions_bytes(task.options.interventions)


def _interventions_bytes(interventions: Iterable[Intervention]) -> int:
    return sum(
        _INTERVENTION + _NAME * (len(each.neurons) + len(each.heads) + len(each.layers)) for each in interventions
    )


def answer_bytes(task: Task, sizes: ModelSizes) -> int:
    """Bytes of the serialized answer to a task of a model of such sizes."""
    every_head = sizes.layers * sizes.heads
    projected = _TOKEN * task.cost(every_head).projected_tokens
    if isinstance(task, ProjectTask):
        return _NAMED * (1 + len(task.neurons)) + projected
    tokens = _NAMED + _TOKEN * task.length
    if isinstance(task, InterveneTask):
        return tokens + task.sequences * (_NAMED + _PREDICTIONS + _TOKEN * task.generate)
    if isinstance(task, TraceTask):
        inner = 1 + task.options.nodes
        sources = task.length + sizes.layers
        return tokens + 2 * _TOKEN * task.rows + (_NODE + MOST_EDGES * _EDGE) * inner + _NODE * sources + projected
    heads = task.listed_heads(every_head) * (_NAMED + 2 * _FLOAT * task.length)
    own = task.explanations * (_explanation(task, sizes) + heads)
    return tokens + own + _together(task, sizes, heads) + pattern_bytes(task, sizes) + projected


def _together(task: AttributeTask, sizes: ModelSizes, heads: int) -> int:
    """Of the explained tokens together, without projections."""
    if not task.options.aggregate:
        return 0
    scores = _FLOAT * sizes.layers * (2 + sizes.heads)
    by_token = _TOKEN_SCORES * (task.summed_neurons + task.listed_heads(sizes.layers * sizes.heads))
    neurons = _NAMED * task.summed_neurons
    return _NAMED + scores + neurons + heads + task.rows * (by_token + 2 * _TOKEN + _FLOAT)


def pattern_bytes(task: AttributeTask, sizes: ModelSizes) -> int:
    """Bytes of the attention weights in an answer: those of every head on each position up to an explained one.

    They are in memory together, also where the explained tokens are answered one by one.
    """
    if Part.ATTENTION_PATTERNS not in task.options.parts:
        return 0
    visible = [token.position + 1 for token in task.explained]
    visible += range(len(task.token_ids), len(task.token_ids) + task.generate)
    return _FLOAT * sizes.layers * sizes.heads * sum(visible)


def _explanation(task: AttributeTask, sizes: ModelSizes) -> int:
    """Of each explained token, without details of heads and projections."""
    scores = _FLOAT * sizes.layers * (2 + sizes.heads)
    components = 2 * (1 + 2 * sizes.layers)  # the query layers of both kinds of value neurons
    neurons = (_NAMED + _STANDING) * task.named_neurons
    return _NAMED + _PREDICTIONS + scores + _NAMED * components + neurons
