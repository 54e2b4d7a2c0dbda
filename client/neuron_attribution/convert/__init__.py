"""The only code where protobuf messages meet dataclasses: one `to_proto` and one `from_proto` function for each.

Reading a request validates it: InvalidArgumentError names the field and the remedy. Reading a result trusts the server.
May import the data and the generated code; never gRPC, nor what sends or shows.
"""

from neuron_attribution.convert.attributions import (
    attribute_result_from_proto,
    attribute_result_to_proto,
    completed_attribution,
    explanations_apart,
    explanations_to_proto,
    serialized_token,
    stream_answer,
)
from neuron_attribution.convert.graphs.answers import completed_trace, graph_to_proto, trace_from_proto, trace_to_proto
from neuron_attribution.convert.graphs.requests import trace_request_from_proto, trace_request_to_proto
from neuron_attribution.convert.interventions import (
    intervene_request_from_proto,
    intervene_request_to_proto,
    intervene_result_from_proto,
    intervene_result_to_proto,
)
from neuron_attribution.convert.models import model_info_from_proto, model_info_to_proto
from neuron_attribution.convert.neurons import neuron_from_proto, neuron_to_proto
from neuron_attribution.convert.projections import project_neuron_result_from_proto, project_neuron_result_to_proto
from neuron_attribution.convert.requests import (
    attribute_request_from_proto,
    attribute_request_to_proto,
    project_neuron_request_from_proto,
    project_neuron_request_to_proto,
    tokenize_request_from_proto,
    tokenize_request_to_proto,
)
from neuron_attribution.convert.tokens import tokenize_result_from_proto, tokenize_result_to_proto

__all__ = [
    "attribute_request_from_proto",
    "attribute_request_to_proto",
    "attribute_result_from_proto",
    "attribute_result_to_proto",
    "completed_attribution",
    "completed_trace",
    "explanations_apart",
    "explanations_to_proto",
    "graph_to_proto",
    "intervene_request_from_proto",
    "intervene_request_to_proto",
    "intervene_result_from_proto",
    "intervene_result_to_proto",
    "model_info_from_proto",
    "model_info_to_proto",
    "neuron_from_proto",
    "neuron_to_proto",
    "project_neuron_request_from_proto",
    "project_neuron_request_to_proto",
    "project_neuron_result_from_proto",
    "project_neuron_result_to_proto",
    "serialized_token",
    "stream_answer",
    "tokenize_request_from_proto",
    "tokenize_request_to_proto",
    "tokenize_result_from_proto",
    "tokenize_result_to_proto",
    "trace_from_proto",
    "trace_request_from_proto",
    "trace_request_to_proto",
    "trace_to_proto",
]
