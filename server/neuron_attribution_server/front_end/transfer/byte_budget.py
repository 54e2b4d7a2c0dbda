"""How many bytes may be held for callers: for one call, for one tenant, and for the whole server.

Whoever is about to hold something says so first, and waits or is refused where there is no room. What alone is larger
than a bound has room where nothing else is held under that bound, so nothing waits for ever.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from neuron_attribution.errors import ResourceExhaustedError

from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS, current_tenant
from neuron_attribution_server.front_end.transfer.lent_room import LentRoom

RETRY_SECONDS = 1.0
MOST_WAITING = 1000
"""Calls that may wait for room at a time."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a budget is for: a noun for what is held, and the reason of refusals."""

    noun: str
    reason: str


class ByteBudget:
    """Bytes held for callers, `capacity` at most, of which a tenant may have its share. For the event loop only.

    Anonymous callers cannot be told apart and share all of it.
    """

    def __init__(self, what: Held, capacity: int, tenant_share: float) -> None:
        self._what = what
        self.capacity = capacity
        self._tenant_capacity = int(capacity * tenant_share)
        self.held = 0
        """Bytes held now."""
        self._tenants: Counter[str] = Counter()
        self._waiting: OrderedDict[CallBytes, None] = OrderedDict()  # whose turn is next comes first
        self._lent: LentRoom[Holding] = LentRoom(self.admit)

    @property
    def is_short(self) -> bool:
        """Whether somebody waits because the whole server's room is short."""
        return bool(self._waiting) and not all(self._has_room(call.wanted) for call in self._waiting)

    def of_call(self, capacity: int | None = None) -> CallBytes:
        """What a call of the current tenant holds, `capacity` at most; without one, what its tenant may have."""
        return CallBytes(self, current_tenant.get(), self.capacity if capacity is None else capacity)

    def allows(self, tenant: str, size: int) -> bool:
        """Whether a tenant may hold so much more."""
        return self._has_room(size) and (
            tenant == ANONYMOUS or fits(self._tenants[tenant], size, self._tenant_capacity)
        )

    def change(self, tenant: str, size: int) -> None:
        """Count bytes that a tenant holds from now on, or, where negative, no longer holds."""
        self.held += size
        self._tenants[tenant] += size
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        if size < 0:
            self.admit()

    def line_up(self, call: CallBytes) -> None:
        """Let a call that waits have its turn after the others. Raises ResourceExhaustedError where too many wait."""
        if call not in self._waiting and len(self._waiting) >= MOST_WAITING:
            raise self.full()
        self._waiting[call] = None

    def give_up(self, call: CallBytes) -> None:
        """Let a call wait no more."""
        self._waiting.pop(call, None)

    def lend(self, holding: Holding, take_back: Callable[[], None]) -> None:
        """Let what is held be released, and `take_back` be called, where others wait for it for long enough."""
        self._lent.lend(holding, partial(_take_back, holding, take_back))
        if self._waiting:
            self.admit()

    def keep(self, holding: Holding) -> None:
        """Lend it no more."""
        self._lent.keep(holding)

    def admit(self) -> None:
        """Give room to whoever waits for it and may have it, calls taking turns.

        Where the whole server's room is short, nobody overtakes the call whose turn it is.
        """
        while sum(self._admit(call) for call in self._turns()):
            pass
        first = next(iter(self._waiting), None)
        if first is not None:
            anyone = not self._has_room(first.wanted)
            self._lent.take_back(lambda holding: anyone or holding.tenant == first.tenant)

    def full(self) -> ResourceExhaustedError:
        """What a call is refused with."""
        return ResourceExhaustedError(
            f"{self.held} bytes of {self._what.noun} are held, {self.capacity} at most, of which a tenant may have "
            f"{self._tenant_capacity}; try again in {RETRY_SECONDS:g} seconds",
            reason=self._what.reason,
            retry_after=RETRY_SECONDS,
        )

    def _turns(self) -> list[CallBytes]:
        """The calls that wait, up to the first for which the whole server's room is short."""
        found = []
        for call in self._waiting:
            found.append(call)
            if not self._has_room(call.wanted):
                break
        return found

    def _admit(self, call: CallBytes) -> bool:
        if not call.admit():
            return False
        del self._waiting[call]
        if call.waits:
            self._waiting[call] = None
        return True

    def _has_room(self, size: int) -> bool:
        return fits(self.held, size, self.capacity)


class CallBytes:
    """What one call holds of a budget."""

    def __init__(self, budget: ByteBudget, tenant: str, capacity: int) -> None:
        self.budget = budget
        self.tenant = tenant
        self._capacity = capacity
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[Holding]]] = deque()

    @property
    def waits(self) -> bool:
        """Whether something of it waits for room."""
        while self._waiting and self._waiting[0][1].done():  # given up
            self._waiting.popleft()
        return bool(self._waiting)

    @property
    def wanted(self) -> int:
        """The bytes that the first of what waits will hold."""
        return self._waiting[0][0] if self.waits else 0

    def hold(self, size: int) -> Holding:
        """Hold bytes at once. Raises ResourceExhaustedError where there is no room."""
        if not self._may_hold(size):
            raise self.budget.full()
        return Holding(self, size)

    async def room(self, size: int, seconds: float | None = None) -> Holding:
        """Hold bytes once there is room.

        Raises ResourceExhaustedError where too many calls wait for it, TimeoutError after so many seconds.
        """
        if self._may_hold(size):
            return Holding(self, size)
        waiting = self._line_up(size)
        async with asyncio.timeout(seconds):
            try:
                return await waiting
            except asyncio.CancelledError:
                if waiting.cancelled():
                    self._give_up(waiting)
                else:
                    waiting.result().release()
                raise

    def admit(self) -> bool:
        """Give room to the first of what waits, if it may have it."""
        if not self.waits:
            return False
        size, waiting = self._waiting[0]
        if not self._fits(size):
            return False
        self._waiting.popleft()
        waiting.set_result(Holding(self, size))
        return True

    def change(self, size: int) -> None:
        """Count bytes that it holds from now on, or, where negative, no longer holds."""
        self._held += size
        self.budget.change(self.tenant, size)

    def _may_hold(self, size: int) -> bool:
        """Whether it may hold so much more, and is in nobody's way."""
        return not self.waits and self._fits(size) and not self.budget.is_short

    def _fits(self, size: int) -> bool:
        return fits(self._held, size, self._capacity) and self.budget.allows(self.tenant, size)

    def _line_up(self, size: int) -> asyncio.Future[Holding]:
        self.budget.line_up(self)
        waiting: asyncio.Future[Holding] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, waiting))
        self.budget.admit()
        return waiting

    def _give_up(self, waiting: asyncio.Future[Holding]) -> None:
        waiting.cancel()
        if not self.waits:
            self.budget.give_up(self)
        self.budget.admit()  # it may have been in others' way


class Holding:
    """Bytes held until they are released; as a context manager, until it ends."""

    def __init__(self, call: CallBytes, size: int) -> None:
        self._call = call
        self.size = 0
        """Bytes."""
        self.resize(size)

    @property
    def tenant(self) -> str:
        """Whose they are."""
        return self._call.tenant

    def resize(self, size: int) -> None:
        """Hold so many bytes from now on: what is known better than before is never refused."""
        change, self.size = size - self.size, size
        if change:
            self._call.change(change)

    def lend(self, take_back: Callable[[], None]) -> None:
        """Lend them until `keep`: where others wait for them, `take_back` may be called, and they are released."""
        self._call.budget.lend(self, take_back)

    def keep(self) -> None:
        """Lend them no more."""
        self._call.budget.keep(self)

    def release(self) -> None:
        """Hold nothing any more."""
        self.keep()
        self.resize(0)

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def _take_back(holding: Holding, take_back: Callable[[], None]) -> None:
    take_back()
    holding.release()


def fits(held: int, size: int, capacity: int) -> bool:
    """Whether so much more may be held: what is too large by itself, only where nothing else is."""
    return held == 0 or held + size <= capacity
