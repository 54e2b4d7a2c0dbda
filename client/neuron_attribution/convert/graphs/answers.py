"""The graph of a prediction, and the answer that holds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields

from google.protobuf.json_format import MessageToJson

from neuron_attribution.conversations.messages import TokenOrigin
from neuron_attribution.convert.asking.conversations import origins_from_proto, origins_to_proto
from neuron_attribution.convert.attributions import timings_from_proto, timings_to_proto
from neuron_attribution.convert.enums import PROMOTED_SIDES, TRACE_NODE_KINDS
from neuron_attribution.convert.identity import model_identity_from_proto, model_identity_to_proto
from neuron_attribution.convert.neurons import head_from_proto, head_to_proto
from neuron_attribution.convert.projections import projection_from_proto, projection_to_proto
from neuron_attribution.convert.tokens import (
    prediction_from_proto,
    prediction_to_proto,
    token_to_proto,
    tokens_from_proto,
)
from neuron_attribution.convert.values import present, unless_none
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.results import ModelIdentity, PromotedSide, Timings, Token
from neuron_attribution.traces import Graph, Trace, TraceCoverage, TraceEdge, TraceNode
from neuron_attribution.v1 import neuron_attribution_pb2 as messages


def graph_to_proto(model: ModelIdentity, graph: Graph) -> messages.TraceResponse:
    """Write an answer without tokens and times."""
    message = messages.TraceResponse(
        model=model_identity_to_proto(model),
        positions=graph.positions,
        targets=map(prediction_to_proto, graph.targets),
        contrasts=map(prediction_to_proto, graph.contrasts),
        output=graph.output,
        log_odds=graph.log_odds,
        coverage=messages.TraceCoverage(**asdict(graph.coverage)),
    )
    for node in graph.nodes:
        _write_node(node, message.nodes.add())
    for edge in graph.edges:
        message.edges.add(
            source=edge.source,
            target=edge.target,
            contribution=edge.contribution,
            share=edge.share,
            head=unless_none(edge.head, head_to_proto),
            head_contribution=edge.head_contribution,
        )
    return message


def completed_trace(
    response: bytes, tokens: Iterable[Token], timings: Timings, origins: Iterable[TokenOrigin] = ()
) -> bytes:
    """A serialized answer without tokens and times, and what completes it behind it: together they are one message."""
    rest = messages.TraceResponse(
        tokens=map(token_to_proto, tokens), origins=origins_to_proto(origins), timings=timings_to_proto(timings)
    )
    return response + rest.SerializeToString()


def trace_to_proto(trace: Trace) -> messages.TraceResponse:
    """Write an answer."""
    response = graph_to_proto(trace.model, trace.graph).SerializeToString()
    return messages.TraceResponse.FromString(completed_trace(response, trace.tokens, trace.timings, trace.origins))


def trace_json(trace: Trace) -> str:
    """An answer as protobuf JSON with proto names; zeros are written."""
    return MessageToJson(
        trace_to_proto(trace), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def trace_from_proto(message: messages.TraceResponse) -> Trace:
    """Read an answer."""
    coverage = message.coverage
    return Trace(
        model=model_identity_from_proto(message.model),
        tokens=tokens_from_proto(message.tokens),
        graph=Graph(
            positions=tuple(message.positions),
            targets=tuple(map(prediction_from_proto, message.targets)),
            contrasts=tuple(map(prediction_from_proto, message.contrasts)),
            output=message.output,
            log_odds=message.log_odds,
            nodes=tuple(map(_node_from_proto, message.nodes)),
            edges=tuple(map(_edge_from_proto, message.edges)),
            coverage=TraceCoverage(**{field.name: getattr(coverage, field.name) for field in fields(TraceCoverage)}),
        ),
        timings=timings_from_proto(message.timings),
        origins=origins_from_proto(message.origins),
    )


def _write_node(node: TraceNode, message: messages.TraceNode) -> None:
    """Write a node in place: messages that become part of others are copied."""
    message.kind = TRACE_NODE_KINDS.encode(node.kind)
    if node.neuron is not None:
        message.neuron.layer, message.neuron.index = node.neuron.layer, node.neuron.index
        if node.neuron.expert is not None:
            message.neuron.expert = node.neuron.expert
    for name in ("position", "layer", "effect", "gradient", "activity"):
        value = getattr(node, name)
        if value is not None:
            setattr(message, name, value)
    message.activation, message.relevance, message.other = node.activation, node.relevance, node.other
    message.always_on = node.always_on
    message.promoted_side = PROMOTED_SIDES.encode(node.promoted_side)
    if node.projection is not None:
        message.projection.CopyFrom(projection_to_proto(node.projection))


def _node_from_proto(message: messages.TraceNode) -> TraceNode:
    """Read a node. A side only a newer server knows is unknown here."""
    side, given = message.promoted_side, message.HasField
    return TraceNode(
        kind=TRACE_NODE_KINDS.from_result(message.kind),
        activation=message.activation,
        relevance=message.relevance,
        neuron=present(message, "neuron", _neuron_from_proto),
        position=message.position if given("position") else None,
        layer=message.layer if given("layer") else None,
        effect=message.effect if given("effect") else None,
        gradient=message.gradient if given("gradient") else None,
        projection=present(message, "projection", projection_from_proto),
        promoted_side=PROMOTED_SIDES.from_result(side) if PROMOTED_SIDES.known(side) else PromotedSide.UNKNOWN,
        always_on=message.always_on,
        activity=message.activity if given("activity") else None,
        other=message.other,
    )


def _neuron_from_proto(message: messages.FfnNeuron) -> FfnNeuron:
    return FfnNeuron(message.layer, message.index, message.expert if message.HasField("expert") else None)


def _edge_from_proto(message: messages.TraceEdge) -> TraceEdge:
    return TraceEdge(
        source=message.source,
        target=message.target,
        contribution=message.contribution,
        share=message.share,
        head=present(message, "head", head_from_proto),
        head_contribution=message.head_contribution if message.HasField("head_contribution") else None,
    )
