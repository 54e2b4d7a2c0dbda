"""Neurons and heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuron_attribution.convert.values import unsigned
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron, QuerySource
from neuron_attribution.v1 import neuron_attribution_pb2 as messages


def neuron_to_proto(neuron: Neuron, field: str = "neuron") -> messages.Neuron:
    """Write a neuron."""
    layer, index = unsigned(neuron.layer, f"{field}.layer"), unsigned(neuron.index, f"{field}.index")
    if isinstance(neuron, FfnNeuron):
        expert = None if neuron.expert is None else unsigned(neuron.expert, f"{field}.expert")
        return messages.Neuron(ffn=messages.FfnNeuron(layer=layer, index=index, expert=expert))
    head = unsigned(neuron.head, f"{field}.head")
    return messages.Neuron(attention=messages.AttentionNeuron(layer=layer, head=head, index=index))


def neuron_from_proto(message: messages.Neuron, field: str = "neuron") -> Neuron:
    """Read a neuron; one that is neither kind is refused."""
    match message.WhichOneof("neuron"):
        case "ffn":
            ffn = message.ffn
            return FfnNeuron(ffn.layer, ffn.index, ffn.expert if ffn.HasField("expert") else None)
        case "attention":
            return AttentionNeuron(message.attention.layer, message.attention.head, message.attention.index)
    raise InvalidArgumentError.of(field, "names no neuron; set either ffn or attention")


def neurons_to_proto(neurons: Sequence[Neuron], field: str = "neurons") -> list[messages.Neuron]:
    """Write a request's neurons."""
    return [neuron_to_proto(neuron, f"{field}[{index}]") for index, neuron in enumerate(neurons)]


def neurons_from_proto(neurons: Iterable[messages.Neuron], field: str = "neurons") -> tuple[Neuron, ...]:
    """Read a request's neurons."""
    return tuple(neuron_from_proto(neuron, f"{field}[{index}]") for index, neuron in enumerate(neurons))


def query_sources_to_proto(sources: Sequence[QuerySource], field: str) -> list[messages.QuerySource]:
    """Write the neurons that query parts start from."""
    return [
        messages.QuerySource(
            neuron=neuron_to_proto(source.neuron, f"{field}[{index}].neuron"),
            position=None if source.position is None else unsigned(source.position, f"{field}[{index}].position"),
        )
        for index, source in enumerate(sources)
    ]


def query_sources_from_proto(sources: Iterable[messages.QuerySource], field: str) -> tuple[QuerySource, ...]:
    """Read the neurons that query parts start from."""
    return tuple(
        QuerySource(
            neuron_from_proto(source.neuron, f"{field}[{index}].neuron"),
            source.position if source.HasField("position") else None,
        )
        for index, source in enumerate(sources)
    )


def head_to_proto(head: Head, field: str = "head") -> messages.Head:
    """Write a head."""
    return messages.Head(layer=unsigned(head.layer, f"{field}.layer"), head=unsigned(head.head, f"{field}.head"))


def head_from_proto(message: messages.Head) -> Head:
    """Read a head."""
    return Head(message.layer, message.head)
