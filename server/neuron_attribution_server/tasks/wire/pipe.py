"""The pipe between the front end and a worker process: pickled messages, each after its length.

The front end's event loop reads its end itself: a thread that read for it would have to be woken, and to wake the loop.
"""

from __future__ import annotations

import asyncio
import pickle
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, cast

_LENGTH = struct.Struct("!Q")
_SHORT = 256 * 1024
"""Bytes up to which a message is sent in one piece, which wakes its reader once."""


class WorkerEnd:
    """The worker's end: threads may send, one at a time, and wait for messages. Raises OSError without a front end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message; pickling comes before the first byte, so what cannot be pickled leaves the pipe in order."""
        length, data = _framed(message)
        with self._lock:
            if len(data) <= _SHORT:
                self._end.sendall(length + data)
            else:  # without a second copy
                self._end.sendall(length)
                self._end.sendall(data)

    def receive(self) -> Any:  # noqa: ANN401 - whatever was sent
        """Wait for the next message. Raises EOFError once there are no more."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))

    def has_message(self) -> bool:
        """Whether a message, or the end, has come. The front end sends messages whole."""
        return bool(select.select([self._end], [], [], 0)[0])

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = self._end.recv_into(rest)
            if not count:
                raise EOFError
            rest = rest[count:]
        return data


class FrontEnd(asyncio.Protocol):
    """The event loop's end. Each message goes to `received`, and at last `closed` is called.

    What cannot be read goes to `unreadable`, as an exception; nothing is read after it.
    """

    undelivered = False
    """Whether the worker has gone before it had read all that was sent, as far as the system tells."""

    def __init__(
        self,
        received: Callable[[Any], None],
        unreadable: Callable[[Exception], None],
        closed: Callable[[], None],
    ) -> None:
        self._received = received
        self._unreadable = unreadable
        self._closed = closed
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass on what is complete."""
        self._data += data
        while len(self._data) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
            if len(self._data) < end:
                return
            try:
                with memoryview(self._data) as view:
                    message = pickle.loads(view[_LENGTH.size : end])
            except Exception as error:
                assert self._transport is not None
                self._transport.abort()
                self._unreadable(error)
                return
            del self._data[:end]
            self._received(message)

    def connection_lost(self, error: Exception | None) -> None:
        """Say so."""
        self.undelivered = error is not None  # the system resets a connection that closes with unread data
        self._closed()

    def send(self, message: object) -> None:
        """Send a message, without waiting: what the pipe cannot hold yet is kept and follows. Nobody may be there."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(b"".join(_framed(message)))

    def finish(self) -> None:
        """Tell the worker that nothing more is sent."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Close the pipe."""
        assert self._transport is not None
        self._transport.abort()


def _framed(message: object) -> tuple[bytes, bytes]:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)), data
