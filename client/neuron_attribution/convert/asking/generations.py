"""How tokens are generated, and how that ended."""

from __future__ import annotations

from neuron_attribution.convert.enums import FINISH_REASONS
from neuron_attribution.convert.values import unsigned
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.generation import Generation, Sampling
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

_COLDEST, _HOTTEST = 0.01, 100.0
_LARGEST_SEED = 2**64 - 1
_DEFAULTS = Sampling()


def sampling_to_proto(sampling: Sampling) -> messages.Sampling:
    """Write how tokens are drawn."""
    message = messages.Sampling(
        temperature=_number(sampling.temperature, "sampling.temperature"),
        top_p=_number(sampling.top_p, "sampling.top_p"),
        top_k=unsigned(sampling.top_k, "sampling.top_k"),
    )
    if sampling.seed is not None:
        message.seed = unsigned(sampling.seed, "sampling.seed", _LARGEST_SEED)
    return message


def sampling_from_proto(message: messages.Sampling, generate: int | None) -> Sampling:
    """Read and check how the `generate` tokens of a request are drawn."""
    if not generate:
        raise InvalidArgumentError.of("sampling", "only generated tokens are sampled; set generate, or leave it out")
    temperature = message.temperature if message.HasField("temperature") else _DEFAULTS.temperature
    top_p = message.top_p if message.HasField("top_p") else _DEFAULTS.top_p
    if not _COLDEST <= temperature <= _HOTTEST:
        raise InvalidArgumentError.of(
            "sampling.temperature",
            f"{temperature:g} is not between {_COLDEST:g} and {_HOTTEST:g}; "
            "for the most probable tokens leave sampling out",
        )
    if not 0 < top_p <= 1:
        raise InvalidArgumentError.of("sampling.top_p", f"{top_p:g} is no probability above 0; give at most 1")
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=message.top_k,
        seed=message.seed if message.HasField("seed") else None,
    )


def generation_to_proto(generation: Generation) -> messages.Generation:
    """Write how a generation ended."""
    return messages.Generation(finish_reason=FINISH_REASONS.encode(generation.finish_reason), seed=generation.seed)


def generation_from_proto(message: messages.Generation) -> Generation:
    """Read how a generation ended."""
    return Generation(
        FINISH_REASONS.from_result(message.finish_reason), message.seed if message.HasField("seed") else None
    )


def _number(value: float, field: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidArgumentError.of(field, f"{value!r} is no number") from None
