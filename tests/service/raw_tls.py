"""A socket under TLS that one thread may read while another writes: the ssl module's own sockets may not be shared."""

from __future__ import annotations

import socket
import ssl
import threading


class SecureSocket:
    """A connected socket, after the handshake. TLS happens in memory, under a lock that nobody holds while waiting."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, name: str = "localhost") -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._lock = threading.Lock()
        self._whole(self._tls.do_handshake)

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        with self._lock:
            self._tls.write(data)
            self._flush()

    def recv(self, size: int) -> bytes:
        """What comes next; nothing at the end."""
        return self._whole(lambda: self._tls.read(size))

    def shutdown(self, how: int) -> None:
        self._plain.shutdown(how)

    def close(self) -> None:
        self._plain.close()

    def _whole(self, step):
        while True:
            with self._lock:
                try:
                    done = step()
                except ssl.SSLWantReadError:
                    done = None
                except ssl.SSLZeroReturnError:
                    return b""
                finally:
                    self._flush()
            if done is not None or (step == self._tls.do_handshake and self._tls.version()):
                return done
            data = self._plain.recv(65_536)
            if not data:
                return b""
            with self._lock:
                self._incoming.write(data)

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._plain.sendall(data)
