"""How many long requests may be read and tokenized, or wait for it, at the same time: a few threads do that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from neuron_attribution.errors import ResourceExhaustedError

from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS, current_tenant

READERS = 32
_RETRY_SECONDS = 1.0


class ReadingLimit:
    """Places for the requests that are read. A tenant may fill its share; anonymous callers cannot be told apart."""

    def __init__(self, tenant_share: float) -> None:
        self._share = max(1, int(READERS * tenant_share))
        self._readers: Counter[str] = Counter()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Keep a place for the current tenant's request. Raises ResourceExhaustedError where there is none."""
        tenant = current_tenant.get()
        mine, every = self._readers[tenant], self._readers.total()
        if every >= READERS:
            raise _full(every, "", "QUEUE_FULL")
        if tenant != ANONYMOUS and mine >= self._share:
            raise _full(mine, "of yours ", "TENANT_QUEUE_FULL")
        self._readers[tenant] += 1
        try:
            yield
        finally:
            self._readers[tenant] -= 1
            self._readers += Counter()  # drops the tenants that have none


def _full(count: int, whose: str, reason: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{count} long requests {whose}are being read; try again in {_RETRY_SECONDS:g} seconds",
        reason=reason,
        retry_after=_RETRY_SECONDS,
    )
