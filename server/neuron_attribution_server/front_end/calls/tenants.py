"""Which tenant a call belongs to: set where calls are authenticated, read where they are queued."""

from __future__ import annotations

from contextvars import ContextVar

ANONYMOUS = "anonymous"
"""The tenant of every call where no tokens are configured."""

current_tenant: ContextVar[str] = ContextVar("current_tenant", default=ANONYMOUS)
