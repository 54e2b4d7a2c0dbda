"""What is noted of one call while it runs, by whatever part of the server learns it."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuron_attribution.errors import (
    DeadlineExceededError,
    NeuronAttributionError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

from neuron_attribution_server.front_end.calls.public_errors import public_error
from neuron_attribution_server.front_end.observability.metrics import Exemplar, Metrics

if TYPE_CHECKING:
    from opentelemetry.trace import Span

REQUEST_ID_KEY = "x-request-id"
_REFUSALS = (ResourceExhaustedError, UnavailableError, DeadlineExceededError, UnauthenticatedError)


def request_id(metadata: Any) -> str:  # noqa: ANN401 - gRPC's metadata, a tuple of pairs
    """The caller's request id where it is one, else a new one. It goes into log lines, so not every text will do."""
    given = dict(metadata or ()).get(REQUEST_ID_KEY, "")
    return given if isinstance(given, str) and re.fullmatch(r"[\w.:/+=-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


@dataclass(slots=True)
class Call:
    """One call. The items of a stream share theirs."""

    metrics: Metrics
    request_id: str
    is_ours: bool
    """Whether it is of this service, and not health, reflection or a call nobody serves."""
    reason: str = ""
    """Why it failed, or the last failing item of its stream did."""
    items: int = 0
    """How many prompts were read."""
    tokens: int = 0
    """Their tokens."""
    characters: int = 0
    """Those of a text that is only tokenized."""
    prompt: str | tuple[int, ...] | None = None
    """The text or the tokens of the only prompt; for its hash alone."""
    waited: float = 0.0
    """Seconds that the only request and the only answer of the call took on their way."""
    span: Span | None = None
    """Where traces are sent: the call's span, whether or not it is sampled."""

    @property
    def trace_id(self) -> str:
        """The trace the call is part of, as hexadecimal digits; empty where traces are not sent."""
        return "" if self.span is None else format(self.span.get_span_context().trace_id, "032x")

    @property
    def exemplar(self) -> Exemplar:
        """What leads from a metric to the call's trace, if that is sampled."""
        return {"trace_id": self.trace_id} if self.span is not None and self.span.is_recording() else None

    def prepared(self, token_ids: tuple[int, ...], seconds: float) -> None:
        """Note the prompt of an attribution, and how long it took to be read and tokenized."""
        self.metrics.tokenized(seconds)
        self.prompt = None if self.items else token_ids
        self.items += 1
        self.tokens += len(token_ids)

    def reads(self, text: str) -> None:
        """Note a text that is to be tokenized."""
        self.prompt, self.characters = text, len(text)

    def public(self, caught: Exception) -> NeuronAttributionError:
        """What the caller may see of an error that ends the call or an item of its stream."""
        error = public_error(caught, self.request_id)
        self.failed(error)
        return error

    def failed(self, error: NeuronAttributionError) -> None:
        """Note an error that the caller sees."""
        self.reason = error.reason
        if isinstance(error, _REFUSALS):
            self.metrics.rejected(error.reason)


current_call: ContextVar[Call] = ContextVar("current_call")
"""Set where a call arrives. Whatever handles it runs in the same task, or in tasks with a copy of its context."""


def call_ids() -> dict[str, str]:
    """What identifies the current call in log lines, if there is one."""
    call = current_call.get(None)
    if call is None:
        return {}
    return {"request_id": call.request_id} | ({"trace_id": call.trace_id} if call.span is not None else {})
