"""Ends the connection of a caller that does not take its answer.

gRPC cannot end such a call by itself: its status would have to wait behind the answer. Whatever else runs on the
connection ends with it, so callers are given many seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote

from neuron_attribution_server.front_end.transfer.exchange import Context

UNREAD_SECONDS = 20.0
"""How long a caller may leave an answer unread."""

_log = logging.getLogger(__name__)


def ends_soon(context: Context) -> None:
    """Hang up on a caller that does not take the answer, which must follow at once."""
    timeout = _Timeout(context.peer())
    context.add_done_callback(lambda _: timeout.end())  # type: ignore[arg-type]  # the stubs want a class


@contextmanager
def taken(context: Context) -> Iterator[None]:
    """Hang up on a caller that does not take what is written meanwhile. Raises CancelledError then."""
    timeout = _Timeout(context.peer())
    try:
        yield
    except Exception:
        if timeout.is_over:
            raise asyncio.CancelledError from None  # gRPC would log how its write failed
        raise
    finally:
        timeout.end()


def hang_up(peer: str) -> None:
    """End the connections from an address, which is spelt as `ServicerContext.peer` does.

    Where there are none, or no file descriptor is free to look for them, nothing happens.
    """
    caller = caller_of(peer)
    with suppress(OSError):
        for descriptor in os.listdir("/proc/self/fd"):
            _shut_down_if_from(caller, int(descriptor))


class _Timeout:
    """Hangs up on a caller, again and again until that succeeds, when it has waited for long enough."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self.is_over = False
        self._begin()

    def end(self) -> None:
        """Wait no more: the caller has taken it, or has gone."""
        self._timer.cancel()

    def _begin(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(UNREAD_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        _log.warning("a caller did not take what it was sent in %g seconds; hanging up", UNREAD_SECONDS)
        self.is_over = True
        hang_up(self._peer)
        self._begin()


def caller_of(peer: str) -> tuple[str, int]:
    """Host and port of an address as gRPC spells it."""
    _, _, address = peer.partition(":")
    host, _, port = unquote(address).rpartition(":")
    return _plain(host.strip("[]")), int(port) if port.isdigit() else 0


def _shut_down_if_from(caller: tuple[str, int], descriptor: int) -> None:
    with suppress(OSError):  # closed meanwhile, or not connected
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return
        connection = socket.socket(fileno=descriptor)
        try:
            if connection.family != socket.AF_UNIX and caller_named(connection.getpeername()) == caller:
                connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()  # it is gRPC's


def caller_named(address: tuple[Any, ...]) -> tuple[str, int]:
    """Host and port of an address as sockets have it, spelt alike."""
    return _plain(address[0]), address[1]


def _plain(host: str) -> str:
    """One spelling of each address: sockets for both versions of IP have the fourth one's inside the sixth's."""
    with suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        return str(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else str(address)
    return host
