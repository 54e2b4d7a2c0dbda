"""The process that renders conversations: chat templates are programs of whoever made the model, and run only here.

It has little memory, no files to write and nothing of the server's in its environment. A template cannot be interrupted
inside a process, so whoever asks ends this one when it takes too long, and starts another.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
from pathlib import Path

from jinja2.exceptions import TemplateError, UndefinedError

from neuron_attribution_server.front_end.conversations.frames import receive, send
from neuron_attribution_server.front_end.conversations.rendering import (
    CannotContinueError,
    TooManyCharactersError,
    render,
)
from neuron_attribution_server.front_end.conversations.templates import Refusal

MEMORY_BYTES = 256 << 20
"""Memory that rendering may take beside what the process has when it starts."""
_CPU_SECONDS = 3
"""Longer than anybody waits: a process that nobody is left to end ends by itself."""
_SAID = 500
"""Characters of an error's text that are told."""


def main() -> None:
    """Render what is asked through the standard input, which is a socket, until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # one to the whole group is the parent's: it drains
        signal.signal(number, signal.SIG_IGN)
    _bound()
    asking = socket.socket(fileno=0)
    send(asking, b"ready")
    while (job := receive(asking)) is not None:
        _allow_seconds()
        answer, exhausted = _answer(job)
        send(asking, answer)
        if exhausted:
            return


def _answer(job: bytes) -> tuple[bytes, bool]:
    """What rendering gives, and whether memory ran out, which the process may not have back."""
    try:
        return json.dumps(render(json.loads(job))).encode(), False
    except MemoryError:
        return _failed("memory", ""), True
    except Exception as error:
        return _failed(_kind(error), str(error)), False


def _kind(error: Exception) -> str:
    match error:
        case Refusal():
            return "refused"
        case TooManyCharactersError():
            return "characters"
        case CannotContinueError():
            return "continuing"
        case TemplateError() if not isinstance(error, UndefinedError):
            return "template"
        case RecursionError() | OverflowError():
            return "template"
    return "conversation"


def _failed(kind: str, message: str) -> bytes:
    return json.dumps({"error": kind, "message": message[:_SAID]}).encode()


def _bound() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for limit, most in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def _allow_seconds() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + _CPU_SECONDS, hard))


if __name__ == "__main__":
    main()
