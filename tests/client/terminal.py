"""A terminal that a program believes in, of any width."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

PATIENCE = 30


class Terminal:
    """A program on a terminal: what it wrote, and keys for it."""

    def __init__(self, command, columns=80, **environment):
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        left_out = {"COLUMNS", "NO_COLOR", "FORCE_COLOR"}
        inherited = {name: value for name, value in os.environ.items() if name not in left_out}
        self._process = subprocess.Popen(
            command,
            stdin=side,
            stdout=side,
            stderr=side,
            env={**inherited, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(side)
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._main)

    def press(self, keys):
        os.write(self._main, keys.encode())

    def wait_for(self, words):
        """Read until some words are there."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.text and time.monotonic() < deadline:
            if not self._read(0.1) and self._process.poll() is not None:
                break
        assert words in self.text, ascii(self.text)

    def finish(self):
        """Read until the program ends; its exit status."""
        while self._read(PATIENCE):
            pass
        return self._process.wait(PATIENCE)

    def _read(self, patience):
        if not select.select([self._main], [], [], patience)[0]:
            return False
        try:
            data = os.read(self._main, 65536)
        except OSError:  # Linux's way to say that nobody has the other side any more.
            data = b""
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
