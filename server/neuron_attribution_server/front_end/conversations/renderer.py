"""Conversations are rendered by a few processes: started when they are needed, ended when they take too long."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuron_attribution.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError

from neuron_attribution_server.front_end.conversations.frames import receive, send

if TYPE_CHECKING:  # jinja2 is imported in the child alone
    from neuron_attribution_server.front_end.conversations.rendering import Job

PROCESSES = 2
RENDER_SECONDS = 1.0
"""How long a conversation may take to become text."""
_WAIT_SECONDS = 0.75
"""How long one may wait for a process."""
_START_SECONDS = 20.0
_CHILD = "neuron_attribution_server.front_end.conversations.child"


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a conversation. Each of its `segments` ends at a character, belongs to a message, is its author's."""

    text: str
    segments: list[tuple[int, int, int]]


Render = Callable[["Job", str], Rendered]


class Renderer:
    """Renders conversations, so many at a time. Any thread may use it; it waits."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        self._children = [_Child() for _ in range(processes)]
        for child in self._children:
            self._idle.put(child)

    @contextmanager
    def turn(self) -> Iterator[Render]:
        """What renders while this is entered. Raises ResourceExhaustedError where others take too long.

        What it gives raises InvalidArgumentError and FailedPreconditionError.
        """
        try:
            child = self._idle.get(timeout=_WAIT_SECONDS)
        except queue.Empty:
            raise ResourceExhaustedError(
                "other conversations are being rendered; try again in a second", reason="QUEUE_FULL", retry_after=1.0
            ) from None
        try:
            yield child.render
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.end()


class _Child:
    """A process that renders, started at its first conversation, and again where it had to be ended."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._end: Callable[[], object] = lambda: None
        self._is_ready = False

    def render(self, job: Job, field: str) -> Rendered:
        """The text of a conversation, which errors name so. Raises InvalidArgumentError and FailedPreconditionError."""
        try:
            answer = self._ask(json.dumps(job).encode())
        except TimeoutError:
            self._restart()
            raise _too_long() from None
        except OSError:
            answer = None
        if answer is None:
            self._restart()
            raise _broken("its process ended")
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            if found["error"] == "memory":
                self._restart()
            raise _failure(found["error"], found["message"], job, field)
        return Rendered(found["text"], [tuple(segment) for segment in found["segments"]])

    def end(self) -> None:
        """End the process, if there is one."""
        self._end()
        self._socket, self._is_ready = None, False

    def _ask(self, job: bytes) -> bytes | None:
        if self._socket is None:
            self._start()
        assert self._socket is not None
        if not self._is_ready:
            self._socket.settimeout(_START_SECONDS)
            self._is_ready = receive(self._socket) is not None
        self._socket.settimeout(RENDER_SECONDS)
        send(self._socket, job)
        return receive(self._socket)

    def _restart(self) -> None:
        """Have another process ready for the next conversation."""
        self.end()
        with suppress(OSError):
            self._start()

    def _start(self) -> None:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _CHILD],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
            )
        self._socket = ours
        self._end = weakref.finalize(self, _ended, process, ours)


def _environment() -> dict[str, str]:
    """What the process needs of the server's: where modules lie, and the zone of the time that templates write."""
    kept = {name: os.environ[name] for name in ("TZ", "PATH") if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path)}


def _ended(process: subprocess.Popen[bytes], ours: socket.socket) -> None:
    ours.close()
    process.kill()
    process.wait()


def _too_long() -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the model's chat template took over {RENDER_SECONDS:g} seconds with this conversation; give fewer messages, "
        "or a text or token ids in place of a conversation",
        reason="CHAT_TEMPLATE_TAKES_TOO_LONG",
    )


def _broken(why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the model's chat template cannot be rendered: {why}; give a text or token ids in place of a conversation",
        reason="CHAT_TEMPLATE_FAILED",
    )


def _failure(kind: str, message: str, job: Job, field: str) -> Exception:
    match kind:
        case "refused":
            return InvalidArgumentError.of(
                f"{field}.messages", f"the model's chat template says: {message}", reason="CHAT_TEMPLATE_REFUSES"
            )
        case "characters":
            return InvalidArgumentError.of(
                field, f"becomes over {job['characters']} characters, more than the limit of tokens can hold"
            )
        case "continuing":
            last = f"{field}.messages[{len(job['messages']) - 1}].content"
            return InvalidArgumentError.of(
                last, "cannot be continued: the chat template does not write it as it is; leave continue_final_message"
            )
        case "memory":
            return _broken("it takes more memory than it may")
        case "template":
            return _broken(message)
    return InvalidArgumentError.of(
        f"{field}.messages",
        f"the model's chat template fails with them: {message}; give what it reads",
        reason="CHAT_TEMPLATE_FAILED",
    )
