"""Projections into the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuron_attribution.convert.identity import model_identity_from_proto, model_identity_to_proto
from neuron_attribution.convert.neurons import neuron_from_proto, neuron_to_proto
from neuron_attribution.convert.tokens import token_from_proto, token_to_proto
from neuron_attribution.results import NeuronProjection, ProjectedToken, Projection, ProjectNeuronResult
from neuron_attribution.v1 import neuron_attribution_pb2 as messages


def projection_to_proto(projection: Projection) -> messages.Projection:
    """Write a projection."""
    return messages.Projection(top=_tokens_to_proto(projection.top), bottom=_tokens_to_proto(projection.bottom))


def projection_from_proto(message: messages.Projection) -> Projection:
    """Read a projection."""
    return Projection(top=_tokens_from_proto(message.top), bottom=_tokens_from_proto(message.bottom))


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


def _tokens_to_proto(tokens: Sequence[ProjectedToken]) -> list[messages.ProjectedToken]:
    return [messages.ProjectedToken(token=token_to_proto(item.token), score=item.score) for item in tokens]


def _tokens_from_proto(tokens: Iterable[messages.ProjectedToken]) -> tuple[ProjectedToken, ...]:
    return tuple(ProjectedToken(token_from_proto(item.token), item.score) for item in tokens)
