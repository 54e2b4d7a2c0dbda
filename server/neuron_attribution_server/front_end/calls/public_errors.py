"""What a caller may see of an error; the rest goes to the log."""

from __future__ import annotations

import logging

from neuron_attribution.errors import InternalError, NeuronAttributionError

_log = logging.getLogger(__name__)


def public_error(caught: Exception, request_id: str) -> NeuronAttributionError:
    """The error as the caller may see it. Of a bug that is the request id; what happened goes to the log."""
    if isinstance(caught, NeuronAttributionError) and not isinstance(caught, InternalError):
        return caught
    _log.error("request %s failed: %s", request_id, caught, exc_info=caught)
    return InternalError("internal error", request_id=request_id)
