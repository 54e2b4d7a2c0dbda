"""What a graph is asked for."""

from __future__ import annotations

from neuron_attribution.convert.asking.prompts import (
    completion_from_proto,
    completion_to_proto,
    prompt_from_proto,
    prompt_to_proto,
    span_from_proto,
    span_to_proto,
    token_choice_from_proto,
    token_choice_to_proto,
)
from neuron_attribution.convert.enums import SUBKEYS
from neuron_attribution.convert.values import at_least_one, present, unicode_text, unless_none, unsigned, value_or
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import Subkey
from neuron_attribution.traces import TraceOptions, TraceRequest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

DEFAULTS = TraceOptions()


def trace_request_to_proto(request: TraceRequest) -> messages.TraceRequest:
    """Write a request for a graph."""
    given = [name for name in ("target", "completion", "span") if getattr(request, name) is not None]
    if len(given) > 1:
        raise InvalidArgumentError.of("explain", f"{' and '.join(given)} exclude each other; give one of them")
    options = request.options
    message = messages.TraceRequest(
        model=unicode_text(request.model, "model"),
        prompt=prompt_to_proto(request.prompt, request.add_special_tokens),
        nodes=unsigned(options.nodes, "nodes"),
        edge_share=_number(options.edge_share),
        subkey=SUBKEYS.encode(options.subkey),
        measure=options.measure,
        heads=options.heads,
        screened=unless_none(options.screened, lambda count: unsigned(count, "screened")),
        projection_top_k=unsigned(options.projection_top_k, "projection_top_k"),
        leave_out_always_on=options.leave_out_always_on,
    )
    if request.target is not None:
        message.target.CopyFrom(token_choice_to_proto(request.target, "target"))
    if request.completion is not None:
        message.completion.CopyFrom(completion_to_proto(request.completion))
    if request.span is not None:
        message.span.CopyFrom(span_to_proto(request.span))
    if request.contrast is not None:
        message.contrast.CopyFrom(token_choice_to_proto(request.contrast, "contrast"))
    return message


def trace_request_from_proto(message: messages.TraceRequest) -> TraceRequest:
    """Read and check a request for a graph."""
    prompt, add_special_tokens = prompt_from_proto(message.prompt)
    return TraceRequest(
        prompt=prompt,
        target=present(message, "target", lambda token: token_choice_from_proto(token, "target")),
        completion=present(message, "completion", completion_from_proto),
        span=present(message, "span", span_from_proto),
        contrast=present(message, "contrast", lambda token: token_choice_from_proto(token, "contrast")),
        add_special_tokens=add_special_tokens,
        options=_options_from_proto(message),
        model=message.model,
    )


def _options_from_proto(message: messages.TraceRequest) -> TraceOptions:
    subkey = SUBKEYS.from_request(message.subkey, "subkey")
    if subkey is Subkey.SUBVALUE:
        raise InvalidArgumentError.of("subkey", "subvalue activates no neuron; give up or gate, or leave it unset")
    options = TraceOptions(
        nodes=at_least_one(value_or(message, "nodes", DEFAULTS.nodes), "nodes"),
        edge_share=_share(message.edge_share) if message.HasField("edge_share") else DEFAULTS.edge_share,
        subkey=subkey,
        measure=message.measure if message.HasField("measure") else DEFAULTS.measure,
        heads=message.heads,
        screened=message.screened if message.HasField("screened") else None,
        projection_top_k=value_or(message, "projection_top_k", DEFAULTS.projection_top_k),
        leave_out_always_on=message.leave_out_always_on,
    )
    _check_screened(options)
    return options


def _check_screened(options: TraceOptions) -> None:
    if options.screened is None:
        return
    if not options.measure:
        raise InvalidArgumentError.of(
            "screened", "is how many neurons are measured, and measure is false; leave one of them out"
        )
    if options.screened < options.nodes:
        raise InvalidArgumentError.of(
            "screened", f"{options.screened} is less than nodes, {options.nodes}; raise it, lower nodes or leave it out"
        )


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise InvalidArgumentError.of("edge_share", f"{value:g} is no share; give one above 0, and at most 1")
    return value


def _number(value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidArgumentError.of(
            "edge_share", f"{value!r} is no number; give one above 0, and at most 1"
        ) from None
