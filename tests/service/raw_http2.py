"""A bare HTTP/2 peer that reads no answers: it grants the other side no window, and never a byte more.

    with RawPeer(address) as peer:
        stream = peer.open("/grpc.health.v1.Health/Watch", request.SerializeToString())
        ...                                     # the answer waits in the server, and nobody will ever take it
        assert eventually(lambda: peer.ended(stream))

It obeys the other side's windows and answers settings and pings, as long as it is not `mute`.
"""

import socket
import struct
import threading
from contextlib import suppress

from service.raw_tls import SecureSocket
from service.servers import PATIENCE

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE = 4
_LARGEST_FRAME, _FIRST_WINDOW = 16_384, 65_535


class RawPeer:
    """One connection, opened at once and kept until it is closed. `window` is what each stream is granted, in bytes.

    A `mute` peer answers nothing, as one does whose machine has gone. With `secure`, an SSLContext, it speaks TLS.
    """

    def __init__(self, address, *, window=0, mute=False, secure=None):
        host, _, port = address.rpartition(":")
        plain = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
        plain.settimeout(None)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", PATIENCE, 0))
        self._socket = plain if secure is None else SecureSocket(plain, secure)
        self.mute = mute
        """Whether settings and pings go unanswered; it may become so at any time."""
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._streams = 0
        self._windows = {0: _FIRST_WINDOW}  # what may be sent, on the whole connection and on each stream
        self._first_window = _FIRST_WINDOW
        self.frames = []
        """What has come: (type, flags, stream, payload) each."""
        self.closed = False
        """Whether the other side has hung up."""
        self._socket.sendall(_PREFACE)
        self._frame(SETTINGS, 0, 0, struct.pack("!HI", _INITIAL_WINDOW_SIZE, window))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Hang up."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        with suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def open(self, path, *messages, metadata=(), end=True):
        """Begin a call and send its messages, serialized ones; return its stream. Without `end`, more may follow."""
        stream = 2 * self._streams + 1
        self._streams += 1
        self._windows[stream] = self._first_window
        pseudo = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"))
        usual = (("te", "trailers"), ("content-type", "application/grpc"))
        block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in (*pseudo, *usual, *metadata))
        self._frame(HEADERS, _END_HEADERS, stream, block)
        for message in messages:
            self.send(stream, message)
        if end:
            self._frame(DATA, _END_STREAM, stream, b"")
        return stream

    def send(self, stream, message):
        """Send one more message of a call, as the other side's windows let it."""
        data = b"\0" + struct.pack("!I", len(message)) + message
        while data:
            size = self._room(stream, min(len(data), _LARGEST_FRAME))
            self._frame(DATA, 0, stream, data[:size])
            data = data[size:]

    def ended(self, stream):
        """Whether the other side has ended a call, in whatever way."""
        own = [frame for frame in list(self.frames) if frame[2] == stream]
        return self.closed or any(
            kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & _END_STREAM) for kind, flags, _, _ in own
        )

    def _room(self, stream, wanted):
        """Wait until something may be sent; take so much of both windows."""
        with self._changed:
            free = self._changed.wait_for(
                lambda: self.closed or min(self._windows[0], self._windows[stream]) > 0, PATIENCE
            )
            if self.closed or not free:
                raise ConnectionError("the other side takes nothing any more")
            size = min(wanted, self._windows[0], self._windows[stream])
            self._windows[0] -= size
            self._windows[stream] -= size
            return size

    def _frame(self, kind, flags, stream, payload):
        with self._sending:
            self._socket.sendall(
                struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload
            )

    def _read(self):
        with suppress(OSError):
            while header := self._exactly(9):
                length, (kind, flags, stream) = int.from_bytes(header[:3]), struct.unpack("!BBI", header[3:])
                self._received(kind, flags, stream, self._exactly(length))
        self.close()

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data

    def _received(self, kind, flags, stream, payload):
        self.frames.append((kind, flags, stream, payload))
        if self.mute:
            return
        if kind == SETTINGS and not flags & _ACK:
            self._settings(payload)
            self._frame(SETTINGS, _ACK, 0, b"")
        elif kind == PING and not flags & _ACK:
            self._frame(PING, _ACK, 0, payload)
        elif kind == WINDOW_UPDATE:
            self._grant({stream: struct.unpack("!I", payload)[0]})

    def _settings(self, payload):
        for name, value in struct.iter_unpack("!HI", payload):
            if name == _INITIAL_WINDOW_SIZE:
                more, self._first_window = value - self._first_window, value
                self._grant({stream: more for stream in tuple(self._windows) if stream})

    def _grant(self, windows):
        with self._changed:
            for stream, more in windows.items():
                self._windows[stream] = self._windows.get(stream, self._first_window) + more
            self._changed.notify_all()


def _literal(text):
    """A text of a header, as HPACK has it without tables and Huffman's code."""
    data = text if isinstance(text, bytes) else text.encode()
    return _integer(len(data)) + data


def _integer(value):
    """A whole number in HPACK's coding with a prefix of 7 bits."""
    if value < 127:
        return bytes((value,))
    value, data = value - 127, bytearray((127,))
    while value >= 128:
        data.append(value % 128 + 128)
        value //= 128
    return bytes((*data, value))
