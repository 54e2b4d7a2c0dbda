"""The page, written anew after every section, within a time: what does not fit is left out, and named."""

import signal
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks import markdown
from benchmarks.timing import progress

LEFT_OUT = "Left out"


class OutOfTime(BaseException):
    """The time of the whole run is up; nothing on the way may take it for an error of its own."""


class Budget:
    """Seconds from when it is made."""

    def __init__(self, seconds):
        self._end = time.monotonic() + seconds

    @property
    def left(self):
        return self._end - time.monotonic()

    @contextmanager
    def enforced(self):
        """Raises OutOfTime within, once the time is up."""

        def stop(*_):
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.left))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@dataclass
class Page:
    """Sections in their order, and why others are left out; `failed` if anything went wrong but for the time."""

    output: object
    parts: list = field(default_factory=list)
    left_out: list = field(default_factory=list)
    failed: bool = False

    def add(self, part):
        self.parts.append(part)
        self.write()

    def leave_out(self, title, reason):
        progress(f"left out: {title}: {reason}")
        self.left_out.append(f"- {title}: {reason}")
        self.write()

    def write(self):
        last = [markdown.section(LEFT_OUT, "\n".join(self.left_out))] if self.left_out else []
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text("\n\n".join([*self.parts, *last]) + "\n")


def fill(page, plan, budget):
    """Add the sections of a plan: title, the least seconds worth beginning with, and what writes the section."""
    for title, seconds, written in plan:
        if budget.left < seconds:
            page.leave_out(title, f"{max(0, budget.left):.0f} s were left, it takes {seconds} s or more")
            continue
        progress(f"{title}, {budget.left:.0f} s left")
        try:
            with budget.enforced():
                part = written()
        except OutOfTime:
            page.leave_out(title, "it was stopped, the time was up")
        except Exception as error:
            traceback.print_exc()
            page.failed = True
            page.leave_out(title, f"it failed with {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        else:
            page.add(part)
