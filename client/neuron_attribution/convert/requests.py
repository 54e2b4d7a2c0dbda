"""Requests. An absent scalar means the dataclass's default; reading a request refuses what cannot be meant."""

from __future__ import annotations

from collections.abc import Iterable

from neuron_attribution.conversations.messages import Conversation
from neuron_attribution.convert.aggregates import (
    aggregate_from_proto,
    aggregate_to_proto,
    check_aggregate,
)
from neuron_attribution.convert.asking.conversations import conversation_from_proto, conversation_to_proto
from neuron_attribution.convert.asking.generations import sampling_from_proto, sampling_to_proto
from neuron_attribution.convert.asking.prompts import (
    TextOrIds,
    completion_from_proto,
    completion_to_proto,
    prompt_from_proto,
    prompt_to_proto,
    span_from_proto,
    span_to_proto,
    token_choice_from_proto,
    token_choice_to_proto,
)
from neuron_attribution.convert.enums import DIRECTIONS, PARTS, SCORING_METHODS, SIDES, SUBKEYS
from neuron_attribution.convert.interventions import interventions_from_proto, interventions_to_proto
from neuron_attribution.convert.neurons import (
    head_from_proto,
    head_to_proto,
    neurons_from_proto,
    neurons_to_proto,
    query_sources_from_proto,
    query_sources_to_proto,
)
from neuron_attribution.convert.values import (
    at_least_one,
    not_empty,
    present,
    unicode_text,
    unless_none,
    unsigned,
    value_or,
)
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron
from neuron_attribution.requests import (
    ALL_PARTS,
    AttributeOptions,
    AttributeRequest,
    Part,
    ProjectNeuronRequest,
    Span,
    Subkey,
    TokenizeRequest,
)
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

ATTRIBUTION_DEFAULTS = AttributeOptions()
PROJECTION_DEFAULTS = ProjectNeuronRequest(neurons=())


def attribute_request_to_proto(request: AttributeRequest) -> messages.AttributeRequest:
    """Write a request for an attribution."""
    if not isinstance(request.options, AttributeOptions):
        raise InvalidArgumentError.of("options", f"{request.options!r} is none; write AttributeOptions(top_k=3, …)")
    message = _options_to_proto(request.options)
    message.model = unicode_text(request.model, "model")
    message.prompt.CopyFrom(prompt_to_proto(request.prompt, request.add_special_tokens))
    _write_explained(request, message)
    if request.contrast is not None:
        message.contrast.CopyFrom(token_choice_to_proto(request.contrast, "contrast"))
    if request.sampling is not None:
        message.sampling.CopyFrom(sampling_to_proto(request.sampling))
    if request.contrast_completion is not None:
        message.contrast_completion.CopyFrom(completion_to_proto(request.contrast_completion, "contrast_completion"))
    return message


def attribute_request_from_proto(message: messages.AttributeRequest) -> AttributeRequest:
    """Read and check a request for an attribution."""
    prompt, add_special_tokens = prompt_from_proto(message.prompt)
    target, completion, generate, span = _explained_from_proto(message)
    check_aggregate(message)
    return AttributeRequest(
        prompt=prompt,
        target=target,
        completion=completion,
        generate=generate,
        sampling=present(message, "sampling", lambda sampling: sampling_from_proto(sampling, generate)),
        span=span,
        contrast_completion=(
            completion_from_proto(message.contrast_completion, "contrast_completion")
            if message.HasField("contrast_completion")
            else None
        ),
        contrast=token_choice_from_proto(message.contrast, "contrast") if message.HasField("contrast") else None,
        add_special_tokens=add_special_tokens,
        options=_options_from_proto(message),
        model=message.model,
    )


def project_neuron_request_to_proto(request: ProjectNeuronRequest) -> messages.ProjectNeuronRequest:
    """Write a request for projections."""
    return messages.ProjectNeuronRequest(
        model=unicode_text(request.model, "model"),
        neurons=neurons_to_proto(request.neurons),
        side=SIDES.encode(request.side),
        through=unless_none(request.through, lambda head: head_to_proto(head, "through")),
        top_k=unsigned(request.top_k, "top_k"),
        subkey=SUBKEYS.encode(request.subkey),
    )


def project_neuron_request_from_proto(message: messages.ProjectNeuronRequest) -> ProjectNeuronRequest:
    """Read and check a request for projections."""
    request = ProjectNeuronRequest(
        neurons=neurons_from_proto(message.neurons),
        side=SIDES.from_request(message.side, "side"),
        through=head_from_proto(message.through) if message.HasField("through") else None,
        top_k=at_least_one(value_or(message, "top_k", PROJECTION_DEFAULTS.top_k), "top_k"),
        subkey=SUBKEYS.from_request(message.subkey, "subkey"),
        model=message.model,
    )
    _check_projection(request)
    return request


def tokenize_request_to_proto(request: TokenizeRequest) -> messages.TokenizeRequest:
    """Write a request for tokens."""
    message = messages.TokenizeRequest(model=unicode_text(request.model, "model"))
    if isinstance(request.text, Conversation):
        message.conversation.CopyFrom(conversation_to_proto(request.text, "conversation"))
    else:
        message.text = unicode_text(request.text, "text")
    if request.add_special_tokens is not None:
        message.add_special_tokens = request.add_special_tokens
    return message


def tokenize_request_from_proto(message: messages.TokenizeRequest) -> TokenizeRequest:
    """Read and check a request for tokens."""
    add_special_tokens = message.add_special_tokens if message.HasField("add_special_tokens") else None
    if not message.HasField("conversation"):
        return TokenizeRequest(
            text=not_empty(message.text, "text"), add_special_tokens=add_special_tokens, model=message.model
        )
    for field, given in (("text", bool(message.text)), ("add_special_tokens", add_special_tokens is not None)):
        if given:
            raise InvalidArgumentError.of(field, "is not allowed with a conversation; leave one of them out")
    return TokenizeRequest(text=conversation_from_proto(message.conversation, "conversation"), model=message.model)


def _write_explained(request: AttributeRequest, message: messages.AttributeRequest) -> None:
    given = [name for name in ("target", "completion", "generate", "span") if getattr(request, name) is not None]
    if len(given) > 1:
        raise InvalidArgumentError.of("explain", f"{' and '.join(given)} exclude each other; give one of them")
    if request.target is not None:
        message.target.CopyFrom(token_choice_to_proto(request.target, "target"))
    if request.completion is not None:
        message.completion.CopyFrom(completion_to_proto(request.completion))
    if request.generate is not None:
        message.generate = unsigned(request.generate, "generate")
    if request.span is not None:
        message.span.CopyFrom(span_to_proto(request.span))


def _explained_from_proto(
    message: messages.AttributeRequest,
) -> tuple[str | int | None, TextOrIds | None, int | None, Span | None]:
    match message.WhichOneof("explain"):
        case "target":
            return token_choice_from_proto(message.target, "target"), None, None, None
        case "completion":
            return None, completion_from_proto(message.completion), None, None
        case "generate":
            return None, None, at_least_one(message.generate, "generate"), None
        case "span":
            return None, None, None, span_from_proto(message.span)
    return None, None, None, None


def _options_to_proto(options: AttributeOptions) -> messages.AttributeRequest:
    return messages.AttributeRequest(
        parts=_parts_to_proto(options.parts),
        top_k=unsigned(options.top_k, "top_k"),
        direction=DIRECTIONS.encode(options.direction),
        scoring_method=SCORING_METHODS.encode(options.scoring_method),
        projection_top_k=unsigned(options.projection_top_k, "projection_top_k"),
        query_sources=unsigned(options.query_sources, "query_sources"),
        subkey=SUBKEYS.encode(options.subkey),
        include_final_norm_bias=options.include_final_norm_bias,
        neurons=neurons_to_proto(options.neurons),
        exhaustive=options.exhaustive,
        position_projection_top_k=unsigned(options.position_projection_top_k, "position_projection_top_k"),
        head_top_k=unsigned(options.head_top_k, "head_top_k"),
        attention_neurons_over_positions=options.attention_neurons_over_positions,
        interventions=interventions_to_proto(options.interventions, "interventions"),
        query_from=query_sources_to_proto(options.query_from, "query_from"),
        final_norm_scales=options.final_norm_scales,
        aggregate=aggregate_to_proto(options.aggregate),
        aggregate_only=options.aggregate_only,
    )


def _options_from_proto(message: messages.AttributeRequest) -> AttributeOptions:
    return AttributeOptions(
        parts=_parts_from_proto(message.parts),
        top_k=at_least_one(value_or(message, "top_k", ATTRIBUTION_DEFAULTS.top_k), "top_k"),
        direction=DIRECTIONS.from_request(message.direction, "direction"),
        scoring_method=SCORING_METHODS.from_request(message.scoring_method, "scoring_method"),
        projection_top_k=value_or(message, "projection_top_k", ATTRIBUTION_DEFAULTS.projection_top_k),
        query_sources=at_least_one(
            value_or(message, "query_sources", ATTRIBUTION_DEFAULTS.query_sources), "query_sources"
        ),
        subkey=SUBKEYS.from_request(message.subkey, "subkey"),
        include_final_norm_bias=message.include_final_norm_bias,
        neurons=neurons_from_proto(message.neurons),
        exhaustive=message.exhaustive,
        position_projection_top_k=message.position_projection_top_k,
        head_top_k=at_least_one(value_or(message, "head_top_k", ATTRIBUTION_DEFAULTS.head_top_k), "head_top_k"),
        attention_neurons_over_positions=message.attention_neurons_over_positions,
        interventions=interventions_from_proto(message.interventions, "interventions"),
        query_from=query_sources_from_proto(message.query_from, "query_from"),
        final_norm_scales=tuple(message.final_norm_scales),
        aggregate=aggregate_from_proto(message.aggregate),
        aggregate_only=message.aggregate_only,
    )


def _parts_to_proto(parts: frozenset[Part]) -> list[str]:
    if not parts:
        raise InvalidArgumentError.of("parts", "is empty; name at least one part, or leave it out for all")
    # No part on the wire means every part, also those of a newer server.
    return [] if parts == ALL_PARTS else [PARTS.encode(part) for part in Part if part in parts]


def _parts_from_proto(parts: Iterable[int]) -> frozenset[Part]:
    named = frozenset(PARTS.from_request(part, f"parts[{index}]") for index, part in enumerate(parts))
    return named or ALL_PARTS


def _check_projection(request: ProjectNeuronRequest) -> None:
    if not request.neurons:
        raise InvalidArgumentError.of("neurons", "is empty; name at least one neuron")
    if request.subkey is Subkey.SUBVALUE:
        raise InvalidArgumentError.of("subkey", "subvalue is no subkey; to project subvalues set side to subvalue")
    for index, neuron in enumerate(request.neurons):
        if request.through is not None and isinstance(neuron, AttentionNeuron):
            raise InvalidArgumentError.of(
                f"neurons[{index}]", "is an attention neuron; only FFN neurons are read through a head"
            )
