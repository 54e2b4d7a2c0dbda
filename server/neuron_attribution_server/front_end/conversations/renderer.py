"""Conversations are rendered by a few processes: one is ready before anybody asks, another when that one is asked.

They are ended when they take too long.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuron_attribution.errors import FailedPreconditionError, InvalidArgumentError

from neuron_attribution_server.front_end.conversations.frames import receive, send

if TYPE_CHECKING:  # jinja2 is imported in the child alone
    from neuron_attribution_server.front_end.conversations.rendering import Job

PROCESSES = 2
RENDER_SECONDS = 1.0
"""How long a conversation may take to become text."""
_START_SECONDS = 20.0
_CHILD = "neuron_attribution_server.front_end.conversations.child"


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a conversation. Each of its `segments` ends at a character, belongs to a message, is its author's."""

    text: str
    segments: list[tuple[int, int, int]]


Render = Callable[["Job", str], Rendered]


class Renderer:
    """Renders conversations, so many at a time. Any thread may use it; it waits, for as long as others take."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        self._children = [_Child() for _ in range(processes)]
        for child in self._children:
            self._idle.put(child)

    def prepare(self) -> None:
        """Start the process that the next conversation is rendered by, where it has not been; nothing waits for it."""
        with suppress(queue.Empty):
            child = self._idle.get_nowait()
            try:
                child.start()
            finally:
                self._idle.put(child)

    @contextmanager
    def turn(self) -> Iterator[Render]:
        """What renders while this is entered. It raises InvalidArgumentError and FailedPreconditionError.

        Whoever comes meanwhile finds another process that has begun to start.
        """
        child = self._idle.get()
        try:
            self.prepare()
            yield child.render
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End the processes: what is rendered then fails."""
        for child in self._children:
            child.close()


class _Child:
    """A process that renders, started when it is told to or at its first conversation, and again where it ended."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._end: Callable[[], object] = lambda: None
        self._is_ready = False
        self._is_closed = False

    def render(self, job: Job, field: str) -> Rendered:
        """The text of a conversation, which errors name so. Raises InvalidArgumentError and FailedPreconditionError."""
        try:
            asked = json.dumps(job).encode()
        except RecursionError:
            raise InvalidArgumentError.of(f"{field}.messages", "are nested too deeply; give flatter values") from None
        found: dict[str, Any] = json.loads(self._answer(asked))
        if "error" in found:
            if found["error"] == "memory":
                self._restart()
            raise _failure(found["error"], found["message"], job, field)
        return Rendered(found["text"], [tuple(segment) for segment in found["segments"]])

    def start(self) -> None:
        """Start the process, where there is none. What hinders it is told to the next conversation."""
        if self._socket is None:
            with suppress(OSError):
                self._start()

    def close(self) -> None:
        """End the process, and start none any more."""
        self._is_closed = True
        self._end()

    def _answer(self, job: bytes) -> bytes:
        """What the process says to a job. One that others ended, or that ends at this job, is asked in another one.

        Raises FailedPreconditionError.
        """
        taken = 0.0
        for _ in range(2):
            begun = time.monotonic()
            try:
                process = self._started()
                begun = time.monotonic()
                send(process, job, begun + RENDER_SECONDS - taken)
                answer = receive(process, begun + RENDER_SECONDS - taken)
            except TimeoutError:
                self._restart()
                raise _too_long() from None
            except OSError:
                answer = None
            except BaseException:  # nobody else may get what comes then
                self._restart()
                raise
            if answer is not None:
                return answer
            taken += time.monotonic() - begun
            self._restart()
        raise _broken("its process ended")

    def _started(self) -> socket.socket:
        """A process that is ready. Raises OSError."""
        process = self._socket or self._start()
        if not self._is_ready:
            self._is_ready = receive(process, time.monotonic() + _START_SECONDS) is not None
        return process

    def _restart(self) -> None:
        """Have another process ready for the next conversation."""
        self._end()
        self._socket, self._is_ready = None, False
        with suppress(OSError):
            self._start()

    def _start(self) -> socket.socket:
        """Raises OSError."""
        if self._is_closed:
            raise ConnectionError
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
        return ours


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
