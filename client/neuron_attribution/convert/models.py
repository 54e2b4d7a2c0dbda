"""The description of the served model."""

from __future__ import annotations

from dataclasses import asdict, fields

from neuron_attribution.convert.enums import MIXERS, PARTS
from neuron_attribution.convert.identity import model_identity_from_proto, model_identity_to_proto
from neuron_attribution.convert.tokens import token_to_proto, tokens_from_proto
from neuron_attribution.convert.values import duration, seconds
from neuron_attribution.results import (
    Exactness,
    Invariant,
    LayerParts,
    Limits,
    Mixer,
    ModelInfo,
    ModelSizes,
    TokenizerFacts,
)
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

_LIMITS_IN_SECONDS = (
    "maximum_wait",
    "maximum_age",
    "transfer_timeout",
    "request_seconds",
    "queued_seconds",
    "batch_seconds",
)


def model_info_to_proto(info: ModelInfo) -> messages.GetModelResponse:
    """Write the description of the served model. Sizes, limits and invariants have the fields of their messages."""
    return messages.GetModelResponse(
        model=model_identity_to_proto(info.model),
        family=info.family,
        device=info.device,
        sizes=messages.ModelSizes(**asdict(info.sizes)),
        limits=_limits_to_proto(info.limits),
        supported_parts=[PARTS.encode(part) for part in info.supported_parts],
        exactness=messages.Exactness(exact=info.exactness.exact, explanation=info.exactness.explanation),
        invariants=[messages.Invariant(**asdict(invariant)) for invariant in info.invariants],
        tokenizer=_tokenizer_to_proto(info.tokenizer),
        version=info.version,
        activity=messages.Activity(contexts=info.activity_contexts),
        ranges_ready=info.ranges_ready,
        layers=[_layer_to_proto(layer) for layer in info.layers],
        untraceable=info.untraceable,
    )


def model_info_from_proto(message: messages.GetModelResponse) -> ModelInfo:
    """Read the description of the served model. Parts only a newer server knows are left out."""
    return ModelInfo(
        model=model_identity_from_proto(message.model),
        family=message.family,
        device=message.device,
        sizes=ModelSizes(**{field.name: getattr(message.sizes, field.name) for field in fields(ModelSizes)}),
        limits=_limits_from_proto(message.limits),
        supported_parts=tuple(PARTS.from_result(part) for part in message.supported_parts if PARTS.known(part)),
        exactness=Exactness(message.exactness.exact, message.exactness.explanation),
        invariants=tuple(
            Invariant(item.name, item.description, item.error, item.tolerance) for item in message.invariants
        ),
        tokenizer=_tokenizer_from_proto(message.tokenizer),
        version=message.version,
        activity_contexts=message.activity.contexts,
        ranges_ready=message.ranges_ready,
        layers=tuple(_layer_from_proto(layer) for layer in message.layers),
        untraceable=message.untraceable,
    )


def _layer_to_proto(layer: LayerParts) -> messages.LayerParts:
    mixers = [MIXERS.encode(mixer) for mixer in layer.mixers]
    return messages.LayerParts(mixers=mixers, heads=layer.heads, ffn_width=layer.ffn_width, experts=layer.experts)


def _layer_from_proto(message: messages.LayerParts) -> LayerParts:
    mixers = (MIXERS.from_result(mixer) if MIXERS.known(mixer) else Mixer.UNKNOWN for mixer in message.mixers)
    return LayerParts(tuple(mixers), message.heads, message.ffn_width, message.experts)


def _limits_to_proto(limits: Limits) -> messages.Limits:
    values = asdict(limits)
    return messages.Limits(**values | {name: duration(values[name]) for name in _LIMITS_IN_SECONDS})


def _limits_from_proto(message: messages.Limits) -> Limits:
    values = {field.name: getattr(message, field.name) for field in fields(Limits)}
    return Limits(**values | {name: seconds(values[name]) for name in _LIMITS_IN_SECONDS})


def _tokenizer_to_proto(tokenizer: TokenizerFacts) -> messages.TokenizerFacts:
    return messages.TokenizerFacts(
        adds_special_tokens=tokenizer.adds_special_tokens,
        prefix=[token_to_proto(token) for token in tokenizer.prefix],
        suffix=[token_to_proto(token) for token in tokenizer.suffix],
        chat_template=tokenizer.chat_template,
        chat_templates=tokenizer.chat_templates,
    )


def _tokenizer_from_proto(message: messages.TokenizerFacts) -> TokenizerFacts:
    return TokenizerFacts(
        adds_special_tokens=message.adds_special_tokens,
        prefix=tokens_from_proto(message.prefix),
        suffix=tokens_from_proto(message.suffix),
        chat_template=message.chat_template,
        chat_templates=tuple(message.chat_templates),
    )
