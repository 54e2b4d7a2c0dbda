"""Interventions, and the request and the answer that hold them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from neuron_attribution.convert.asking.conversations import origins_from_proto, origins_to_proto
from neuron_attribution.convert.asking.generations import (
    generation_from_proto,
    generation_to_proto,
    sampling_from_proto,
    sampling_to_proto,
)
from neuron_attribution.convert.asking.prompts import (
    prompt_from_proto,
    prompt_to_proto,
    token_choice_from_proto,
    token_choice_to_proto,
)
from neuron_attribution.convert.attributions import timings_from_proto, timings_to_proto
from neuron_attribution.convert.enums import LAYER_PART_KINDS
from neuron_attribution.convert.identity import model_identity_from_proto, model_identity_to_proto
from neuron_attribution.convert.neurons import head_from_proto, head_to_proto, neurons_from_proto, neurons_to_proto
from neuron_attribution.convert.tokens import (
    prediction_from_proto,
    prediction_to_proto,
    token_to_proto,
    tokens_from_proto,
)
from neuron_attribution.convert.values import present, unicode_text, unless_none, unsigned
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import (
    InterveneRequest,
    Intervention,
    InterventionSet,
    LayerPart,
    Operation,
    Scale,
    SetTo,
    Zero,
)
from neuron_attribution.results import InterveneResult, InterventionResult, PredictionState
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

LARGEST = float(np.finfo(np.float32).max)


def intervene_request_to_proto(request: InterveneRequest) -> messages.InterveneRequest:
    """Write a request for interventions."""
    message = messages.InterveneRequest(
        model=unicode_text(request.model, "model"),
        prompt=prompt_to_proto(request.prompt, request.add_special_tokens),
        sets=[
            messages.InterventionSet(interventions=interventions_to_proto(each, f"sets[{index}].interventions"))
            for index, each in enumerate(request.sets)
        ],
        generate=unsigned(request.generate, "generate"),
        freeze_scale=request.freeze_scale,
    )
    if request.target is not None:
        message.target.CopyFrom(token_choice_to_proto(request.target, "target"))
    if request.sampling is not None:
        message.sampling.CopyFrom(sampling_to_proto(request.sampling))
    return message


def intervene_request_from_proto(message: messages.InterveneRequest) -> InterveneRequest:
    """Read and check a request for interventions."""
    prompt, add_special_tokens = prompt_from_proto(message.prompt)
    if not message.sets:
        raise InvalidArgumentError.of("sets", "is empty; give at least one set of interventions")
    return InterveneRequest(
        prompt=prompt,
        sets=tuple(_set_from_proto(each, f"sets[{index}]") for index, each in enumerate(message.sets)),
        target=token_choice_from_proto(message.target, "target") if message.HasField("target") else None,
        generate=message.generate,
        sampling=present(message, "sampling", lambda sampling: sampling_from_proto(sampling, message.generate)),
        add_special_tokens=add_special_tokens,
        freeze_scale=message.freeze_scale,
        model=message.model,
    )


def interventions_to_proto(interventions: Iterable[Intervention], field: str) -> list[messages.Intervention]:
    """Write the interventions of one set."""
    return [_intervention_to_proto(each, f"{field}[{index}]") for index, each in enumerate(interventions)]


def interventions_from_proto(interventions: Iterable[messages.Intervention], field: str) -> InterventionSet:
    """Read and check the interventions of one set."""
    return tuple(_intervention_from_proto(each, f"{field}[{index}]") for index, each in enumerate(interventions))


def intervene_result_to_proto(result: InterveneResult) -> messages.InterveneResponse:
    """Write the answer to interventions."""
    return messages.InterveneResponse(
        model=model_identity_to_proto(result.model),
        tokens=[token_to_proto(token) for token in result.tokens],
        before=_state_to_proto(result.before),
        results=[
            messages.InterventionResult(after=_state_to_proto(each.after), kl_divergence=each.kl_divergence)
            for each in result.results
        ],
        timings=timings_to_proto(result.timings),
        origins=origins_to_proto(result.origins),
    )


def intervene_result_from_proto(message: messages.InterveneResponse) -> InterveneResult:
    """Read the answer to interventions."""
    return InterveneResult(
        model=model_identity_from_proto(message.model),
        tokens=tokens_from_proto(message.tokens),
        before=_state_from_proto(message.before),
        results=tuple(
            InterventionResult(_state_from_proto(each.after), each.kl_divergence) for each in message.results
        ),
        timings=timings_from_proto(message.timings),
        origins=origins_from_proto(message.origins),
    )


def _set_from_proto(message: messages.InterventionSet, field: str) -> InterventionSet:
    if not message.interventions:
        raise InvalidArgumentError.of(f"{field}.interventions", "is empty; give at least one intervention")
    return interventions_from_proto(message.interventions, f"{field}.interventions")


def _intervention_to_proto(intervention: Intervention, field: str) -> messages.Intervention:
    message = messages.Intervention(
        neurons=neurons_to_proto(intervention.neurons, f"{field}.neurons"),
        explained_position_only=intervention.explained_position_only,
        heads=[head_to_proto(head, f"{field}.heads[{index}]") for index, head in enumerate(intervention.heads)],
        layers=[
            _layer_part_to_proto(part, f"{field}.layers[{index}]") for index, part in enumerate(intervention.layers)
        ],
    )
    match intervention.operation:
        case Zero():
            message.zero = True
        case Scale(factor):
            message.scale = _finite(factor, f"{field}.scale")
        case SetTo(value):
            message.set = _finite(value, f"{field}.set")
    return message


def _intervention_from_proto(message: messages.Intervention, field: str) -> Intervention:
    if not (message.neurons or message.heads or message.layers):
        raise InvalidArgumentError.of(f"{field}.neurons", "is empty; name at least one neuron, head or layer")
    return Intervention(
        operation=_operation_from_proto(message, field),
        neurons=neurons_from_proto(message.neurons, f"{field}.neurons"),
        heads=tuple(head_from_proto(head) for head in message.heads),
        layers=tuple(
            LayerPart(part.layer, LAYER_PART_KINDS.from_request(part.kind, f"{field}.layers[{index}].kind"))
            for index, part in enumerate(message.layers)
        ),
        explained_position_only=message.explained_position_only,
    )


def _operation_from_proto(message: messages.Intervention, field: str) -> Operation:
    match message.WhichOneof("operation"):
        case "zero" if message.zero:
            return Zero()
        case "zero":
            raise InvalidArgumentError.of(f"{field}.zero", "is false; set it to true, or set scale or set instead")
        case "scale":
            return Scale(_finite(message.scale, f"{field}.scale"))
        case "set":
            return SetTo(_finite(message.set, f"{field}.set"))
    raise InvalidArgumentError.of(f"{field}.operation", "is not set; set one of zero, scale and set")


def _finite(value: float, field: str) -> float:
    """The number, if activations can be multiplied by it or be set to it."""
    if not abs(value) <= LARGEST:
        raise InvalidArgumentError.of(field, f"{value} is not a finite number of at most {LARGEST:.2e}")
    return value


def _layer_part_to_proto(part: LayerPart, field: str) -> messages.LayerPart:
    return messages.LayerPart(layer=unsigned(part.layer, f"{field}.layer"), kind=LAYER_PART_KINDS.encode(part.kind))


def _state_to_proto(state: PredictionState) -> messages.PredictionState:
    return messages.PredictionState(
        target=prediction_to_proto(state.target),
        predictions=[prediction_to_proto(prediction) for prediction in state.predictions],
        continuation=[token_to_proto(token) for token in state.continuation],
        generation=unless_none(state.generation, generation_to_proto),
    )


def _state_from_proto(message: messages.PredictionState) -> PredictionState:
    return PredictionState(
        target=prediction_from_proto(message.target),
        predictions=tuple(prediction_from_proto(prediction) for prediction in message.predictions),
        continuation=tokens_from_proto(message.continuation),
        generation=present(message, "generation", generation_from_proto),
    )
