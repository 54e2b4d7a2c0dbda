"""One line for each call that has ended."""

from __future__ import annotations

import logging

import grpc

from neuron_attribution_server.front_end.calls.calls import Call
from neuron_attribution_server.front_end.calls.prompt_digest import prompt_digest
from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS, current_tenant
from neuron_attribution_server.front_end.observability.rpc_metrics import code_name

_log = logging.getLogger(__name__)


def log_call(call: Call, method: str, code: grpc.StatusCode, seconds: float) -> None:
    """Log a call of this service as information; probes of its health come every few seconds and are for debugging."""
    level = logging.INFO if call.is_ours else logging.DEBUG
    if _log.isEnabledFor(level):
        fields = {"method": method, "code": code_name(code), "seconds": round(seconds, 6), **_details(call)}
        _log.log(level, "call ended", extra={"fields": fields})


def _details(call: Call) -> dict[str, str | int]:
    """What is known of a call and may be told: nothing of its prompt but length and hash."""
    tenant = current_tenant.get()
    details: dict[str, str | int] = {
        "reason": call.reason,
        "tenant": "" if tenant == ANONYMOUS else tenant,
        "items": call.items if call.items > 1 else 0,
        "tokens": call.tokens,
        "characters": call.characters,
        "prompt_sha256": "" if call.prompt is None else prompt_digest(call.prompt),
        "request_id": call.request_id,
        "trace_id": call.trace_id,
    }
    return {name: value for name, value in details.items() if value}
