"""What is noted of one call while it runs, by whatever part of the server learns it."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from neuron_attribution.errors import (
    DeadlineExceededError,
    NeuronAttributionError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

from neuron_attribution_server.metrics import Metrics
from neuron_attribution_server.public_errors import public_error

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
    reason: str = ""
    """Why it failed, or the last failing item of its stream did."""

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
