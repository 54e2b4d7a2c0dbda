"""The model an answer comes from."""

from __future__ import annotations

from neuron_attribution.results import ModelIdentity
from neuron_attribution.v1 import neuron_attribution_pb2 as messages


def model_identity_to_proto(model: ModelIdentity) -> messages.ModelIdentity:
    """Write a model's identity."""
    return messages.ModelIdentity(name=model.name, revision=model.revision, dtype=model.dtype)


def model_identity_from_proto(message: messages.ModelIdentity) -> ModelIdentity:
    """Read a model's identity."""
    return ModelIdentity(message.name, message.revision, message.dtype)
