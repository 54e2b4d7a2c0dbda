"""Messages through a socket: their length in four bytes, and what they are."""

from __future__ import annotations

import socket

_LENGTH = 4


def send(to: socket.socket, data: bytes) -> None:
    """Send a message. Raises OSError, and TimeoutError after the socket's timeout."""
    to.sendall(len(data).to_bytes(_LENGTH, "big") + data)


def receive(source: socket.socket) -> bytes | None:
    """The next message; None where the other side has closed. Raises OSError, and TimeoutError as `send`."""
    length = _exactly(source, _LENGTH)
    return None if length is None else _exactly(source, int.from_bytes(length, "big"))


def _exactly(source: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        some = source.recv(min(count - len(found), 1 << 16))
        if not some:
            return None
        found += some
    return bytes(found)
