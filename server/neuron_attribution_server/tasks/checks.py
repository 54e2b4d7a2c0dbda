"""Checks of single values of a request; each raises InvalidArgumentError with the field and the valid range."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron, QuerySource
from neuron_attribution.requests import InterventionSet, SetTo
from neuron_attribution.results import ModelSizes

from neuron_attribution_server.tasks.tasks import changes_attention

QUOTED = 200
"""Characters of a text that an error quotes."""


def quotable(text: str) -> str:
    """As much of a caller's text as an error quotes: the middle of a long one is left out."""
    half = QUOTED // 2
    return text if len(text) <= QUOTED else f"{text[:half]} ... {text[-half:]}"


def check_at_least_one(value: int, field: str) -> None:
    """Refuse zero."""
    if value < 1:
        raise InvalidArgumentError.of(field, f"is {value}; give at least 1")


def check_at_most(value: int, limit: int, field: str, unit: str = "") -> None:
    """Refuse more than the limit."""
    if value > limit:
        counted = f"{value} {unit}".rstrip()
        raise InvalidArgumentError.of(field, f"{counted} is over the limit {limit}; give at most {limit}")


def check_neurons(neurons: tuple[Neuron, ...], sizes: ModelSizes, limit: int, field: str = "neurons") -> None:
    """Refuse too many neurons and neurons the model does not have."""
    check_at_most(len(neurons), limit, field, "neurons")
    for position, neuron in enumerate(neurons):
        _check_neuron(neuron, f"{field}[{position}]", sizes)


def check_query_sources(sources: Sequence[QuerySource], sizes: ModelSizes, last: int, field: str) -> None:
    """Refuse neurons the model does not have, and positions behind the last explained one, which it cannot see."""
    for number, source in enumerate(sources):
        _check_neuron(source.neuron, f"{field}[{number}].neuron", sizes)
        if source.position is None:
            continue
        place = f"{field}[{number}].position"
        if isinstance(source.neuron, FfnNeuron):
            raise InvalidArgumentError.of(
                place, f"FFN neuron {source.neuron} reads at the explained position; leave the position out"
            )
        _check_index(source.position, last + 1, place, "position")


def check_interventions(interventions: InterventionSet, sizes: ModelSizes, limit: int, field: str) -> None:
    """Refuse neurons, heads and layers the model does not have."""
    for number, intervention in enumerate(interventions):
        place = f"{field}[{number}]"
        check_neurons(intervention.neurons, sizes, limit, f"{place}.neurons")
        for index, head in enumerate(intervention.heads):
            check_head(head, f"{place}.heads[{index}]", sizes)
        for index, part in enumerate(intervention.layers):
            _check_index(part.layer, sizes.layers, f"{place}.layers[{index}].layer", "layer")


def check_attributable(interventions: InterventionSet, field: str) -> None:
    """Refuse to attribute what has no source position: an attention coefficient that is set."""
    for number, intervention in enumerate(interventions):
        if isinstance(intervention.operation, SetTo) and changes_attention(intervention):
            raise InvalidArgumentError.of(
                f"{field}[{number}].set",
                "sets attention neurons, whose attribution is by source position, and a set value has none; "
                "zero or scale them, or set FFN neurons only",
            )


def check_head(head: Head | AttentionNeuron, field: str, sizes: ModelSizes) -> None:
    """Refuse a head the model does not have."""
    _check_index(head.layer, sizes.layers, f"{field}.layer", "layer")
    _check_index(head.head, sizes.heads, f"{field}.head", "head")


def _check_neuron(neuron: Neuron, field: str, sizes: ModelSizes) -> None:
    if isinstance(neuron, FfnNeuron):
        _check_index(neuron.layer, sizes.layers, f"{field}.ffn.layer", "layer")
        _check_ffn_index(neuron, f"{field}.ffn", sizes)
    else:
        check_head(neuron, f"{field}.attention", sizes)
        _check_index(neuron.index, sizes.head_size, f"{field}.attention.index", "attention neuron")


def _check_ffn_index(neuron: FfnNeuron, field: str, sizes: ModelSizes) -> None:
    """The widths are those of the widest layers; the engine knows each layer's own."""
    if neuron.expert is None:
        _check_index(neuron.index, sizes.ffn_width, f"{field}.index", "FFN neuron")
    else:
        _check_index(neuron.expert, sizes.experts, f"{field}.expert", "expert")
        _check_index(neuron.index, sizes.expert_width, f"{field}.index", "FFN neuron")


def _check_index(value: int, count: int, field: str, noun: str) -> None:
    if not 0 <= value < count:
        valid = f"valid are 0 to {count - 1}" if count else "this model has none"
        raise InvalidArgumentError.of(field, f"{noun} {value} does not exist; {valid}", reason="OUT_OF_RANGE")
