"""The demo model behind a real server process, started as a user starts it."""

import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("neuron-attribution"))


@dataclass(frozen=True)
class ServedDemo:
    """Where a server with the demo model listens, and its web page."""

    address: str
    page: str


@contextmanager
def serving(*arguments, errors=subprocess.DEVNULL):
    """A server process of its own, ready to answer; yields its address and process. It computes every answer anew."""
    process = subprocess.Popen(
        [COMMAND, "serve", "--model", "demo", "--listen", "localhost:0", "--cache-bytes", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    with process:
        try:
            address = process.stdout.readline().removeprefix("listening on ").strip()
            ready = process.stdout.readline()
            assert re.match("ready", ready), f"the server said {ready!r} and ended with {process.poll()}"
            yield address, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def run(*arguments, address):
    """The finished command line call against a server."""
    return subprocess.run(
        [COMMAND, *arguments, "--address", address], capture_output=True, text=True, check=False, timeout=120
    )
