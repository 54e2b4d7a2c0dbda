"""The caller's trace, passed on to the service where the program uses OpenTelemetry. Nothing here requires it."""

from __future__ import annotations

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """The W3C trace context of the active span as metadata; empty without one."""
    # Without this module in use no span can be active, so it need not be imported, nor installed.
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
