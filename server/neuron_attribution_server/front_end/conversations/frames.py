"""Messages through a socket: their length in four bytes, and what they are."""

from __future__ import annotations

import socket
import time

_LENGTH = 4
_LEAST_SECONDS = 0.001


def send(to: socket.socket, data: bytes, deadline: float | None = None) -> None:
    """Send a message. Raises OSError, and TimeoutError where it is not sent by a time of the monotonic clock."""
    if deadline is not None:
        to.settimeout(max(_LEAST_SECONDS, deadline - time.monotonic()))
    to.sendall(len(data).to_bytes(_LENGTH, "big") + data)


def receive(source: socket.socket, deadline: float | None = None) -> bytes | None:
    """The next message; None where the other side has closed.

    Raises OSError, and TimeoutError where all of it is not there by a time of the monotonic clock.
    """
    length = _exactly(source, _LENGTH, deadline)
    return None if length is None else _exactly(source, int.from_bytes(length, "big"), deadline)


def _exactly(source: socket.socket, count: int, deadline: float | None) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        if deadline is not None:
            source.settimeout(max(_LEAST_SECONDS, deadline - time.monotonic()))
        some = source.recv(min(count - len(found), 1 << 16))
        if not some:
            return None
        found += some
    return bytes(found)
