"""Projections into the vocabulary.

They are most of an answer, and a neuron's is the same in every prompt: what was converted lately is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache

from neuron_attribution.convert.identity import model_identity_from_proto, model_identity_to_proto
from neuron_attribution.convert.neurons import neuron_from_proto, neuron_to_proto
from neuron_attribution.convert.tokens import token_from_proto
from neuron_attribution.results import NeuronProjection, ProjectedToken, Projection, ProjectNeuronResult
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

_KEPT = 4096
_SHORT = 20
"""Tokens at either end of the longest projection that is kept."""
_written: OrderedDict[int, tuple[Projection, messages.Projection]] = OrderedDict()
"""By identity, which is found faster than by value; the projection is kept so that its identity stays its own."""


def projection_to_proto(projection: Projection) -> messages.Projection:
    """Write a projection. The message may be shared: do not change it."""
    kept = _written.get(id(projection))
    if kept is None:
        kept = projection, _write(projection)
        if len(projection.top) <= _SHORT:
            _written[id(projection)] = kept
            if len(_written) > _KEPT:
                _written.popitem(last=False)
    return kept[1]


def projection_from_proto(message: messages.Projection) -> Projection:
    """Read a projection."""
    return _read_again(message.SerializeToString()) if len(message.top) <= _SHORT else _read(message)


def project_neuron_result_to_proto(result: ProjectNeuronResult) -> messages.ProjectNeuronResponse:
    """Write the projections of neurons."""
    return messages.ProjectNeuronResponse(
        model=model_identity_to_proto(result.model),
        projections=[
            messages.NeuronProjection(
                neuron=neuron_to_proto(item.neuron), projection=projection_to_proto(item.projection)
            )
            for item in result.projections
        ],
    )


def project_neuron_result_from_proto(message: messages.ProjectNeuronResponse) -> ProjectNeuronResult:
    """Read the projections of neurons."""
    return ProjectNeuronResult(
        model=model_identity_from_proto(message.model),
        projections=tuple(
            NeuronProjection(neuron_from_proto(item.neuron), projection_from_proto(item.projection))
            for item in message.projections
        ),
    )


def _write(projection: Projection) -> messages.Projection:
    message = messages.Projection()
    for tokens, destination in ((projection.top, message.top), (projection.bottom, message.bottom)):
        for item in tokens:
            written = destination.add(score=item.score)
            written.token.id = item.token.id
            written.token.text = item.token.text
    return message


def _read(message: messages.Projection) -> Projection:
    return Projection(_tokens_from_proto(message.top), _tokens_from_proto(message.bottom))


@lru_cache(maxsize=_KEPT)
def _read_again(serialized: bytes) -> Projection:
    return _read(messages.Projection.FromString(serialized))


def _tokens_from_proto(tokens: Iterable[messages.ProjectedToken]) -> tuple[ProjectedToken, ...]:
    return tuple(ProjectedToken(token_from_proto(item.token), item.score) for item in tokens)
