"""What can go wrong, one class per gRPC status.

NeuronAttributionError
├── InvalidArgumentError       a field of the request is wrong: `violations` name it and the remedy
├── NotFoundError              another model's name
├── FailedPreconditionError    this model cannot give that part
├── ResourceExhaustedError     too much is waiting, or a message is too large: `retry_after` says when to try again
├── UnavailableError           loading, restarting, draining, or not reachable
├── DeadlineExceededError      the time allowed ran out; the work was dropped
├── CancelledError             the caller cancelled; the work was dropped
├── UnauthenticatedError       no valid token
├── PermissionDeniedError      the token is valid, but not for this
├── AbortedError               stopped midway, by a proxy for instance; it may be tried again
├── UnimplementedError         this server does not have that call
└── InternalError              a bug: `request_id` finds it in the server's log
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A request field, as a path such as `prompt.text` or `neurons[2].ffn.layer`, and what is wrong with it."""

    field: str
    description: str


class NeuronAttributionError(Exception):
    """Base of all errors. `reason` is stable and meant for programs; the message is meant for people."""

    default_reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = violations
        self.retry_after = retry_after
        """Seconds to wait before trying again, where the server said so."""
        self.request_id = request_id

    def __reduce__(self) -> tuple[object, ...]:
        details = {
            "reason": self.reason,
            "violations": self.violations,
            "retry_after": self.retry_after,
            "request_id": self.request_id,
        }
        return partial(type(self), self.message, **details), ()  # type: ignore[arg-type]


class InvalidArgumentError(NeuronAttributionError):
    """A field of the request is wrong."""

    default_reason = "INVALID_ARGUMENT"

    @classmethod
    def of(cls, field: str, description: str, *, reason: str | None = None) -> InvalidArgumentError:
        """The error for one field."""
        return cls(f"{field}: {description}", reason=reason, violations=(FieldViolation(field, description),))


class NotFoundError(NeuronAttributionError):
    """Another model's name."""

    default_reason = "MODEL_NOT_FOUND"


class FailedPreconditionError(NeuronAttributionError):
    """This model cannot give what was asked for."""

    default_reason = "UNSUPPORTED_BY_MODEL"


class ResourceExhaustedError(NeuronAttributionError):
    """Too much is waiting, or a message is too large."""

    default_reason = "QUEUE_FULL"


class UnavailableError(NeuronAttributionError):
    """Loading, restarting, draining, or not reachable."""

    default_reason = "UNAVAILABLE"


class DeadlineExceededError(NeuronAttributionError):
    """The time allowed ran out."""

    default_reason = "DEADLINE_EXCEEDED"


class CancelledError(NeuronAttributionError):
    """The caller cancelled."""

    default_reason = "CANCELLED"


class UnauthenticatedError(NeuronAttributionError):
    """No valid token."""

    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(NeuronAttributionError):
    """The caller is known, but this is not allowed to it."""

    default_reason = "PERMISSION_DENIED"


class AbortedError(NeuronAttributionError):
    """The call was stopped midway."""

    default_reason = "ABORTED"


class UnimplementedError(NeuronAttributionError):
    """This server does not have that call."""

    default_reason = "UNIMPLEMENTED"


class InternalError(NeuronAttributionError):
    """A bug in the server."""

    default_reason = "INTERNAL"
