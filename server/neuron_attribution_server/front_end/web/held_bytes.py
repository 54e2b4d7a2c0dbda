"""Bytes of callers' messages that are held in memory: so many in all, and a tenant its share of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from neuron_attribution.errors import ResourceExhaustedError

from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS

_RETRY_SECONDS = 1.0


class HeldBytes:
    """Keeps account of what is held: `most` bytes, `tenant_share` of them for one tenant.

    A tenant may always hold one message; anonymous callers cannot be told apart and share it all. What is held is told
    as "`what` that are being `done`".
    """

    def __init__(self, what: str, done: str, most: int, tenant_share: float) -> None:
        self._what = what
        self._done = done
        self._most = most
        self._share = int(most * tenant_share)
        self._held: Counter[str] = Counter()

    @contextmanager
    def message(self, tenant: str) -> Iterator[Held]:
        """One message, until it is let go."""
        held = Held(self, tenant)
        try:
            yield held
        finally:
            self._held[tenant] -= held.size
            self._held += Counter()  # drops the tenants that hold nothing

    def take(self, tenant: str, size: int, more: int) -> None:
        """Let a message that has `size` bytes have `more`. Raises ResourceExhaustedError."""
        mine, every = self._held[tenant], self._held.total()
        if every > size and every + more > self._most:
            raise self._full(every, "", "QUEUE_FULL")
        if tenant != ANONYMOUS and mine > size and mine + more > self._share:
            raise self._full(mine, "of yours ", "TENANT_QUEUE_FULL")
        self._held[tenant] += more

    def _full(self, size: int, whose: str, reason: str) -> ResourceExhaustedError:
        taken = f"{self._what} {whose}that are being {self._done} take {size} bytes"
        text = f"{taken}; try again in {_RETRY_SECONDS:g} seconds"
        return ResourceExhaustedError(text, reason=reason, retry_after=_RETRY_SECONDS)


class Held:
    """What is held of one message."""

    def __init__(self, account: HeldBytes, tenant: str) -> None:
        self._account = account
        self._tenant = tenant
        self.size = 0
        """Bytes."""

    def grow_to(self, size: int) -> None:
        """Hold so many bytes of it. Raises ResourceExhaustedError where there is no room."""
        if size > self.size:
            self._account.take(self._tenant, self.size, size - self.size)
            self.size = size
