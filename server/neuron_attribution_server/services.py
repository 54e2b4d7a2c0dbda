"""The gRPC services of a server, by name."""

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from neuron_attribution.v1 import neuron_attribution_pb2

SERVICES = (
    neuron_attribution_pb2.DESCRIPTOR.services_by_name["NeuronAttributionService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
SERVICE, HEALTH, REFLECTION = (each.full_name for each in SERVICES)
LIVENESS = "liveness"
"""The name that health answers SERVING for as long as it answers at all: without a model, and while draining."""
