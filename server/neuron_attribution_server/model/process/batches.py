"""Runs batches in the worker process. A long one looks up at its checkpoints: it stops when nobody waits for it any
more, and lets a short batch that has come meanwhile go first.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from neuron_attribution.errors import CancelledError

from neuron_attribution_server.model.attribution.checkpoints import at_checkpoints, checked
from neuron_attribution_server.tasks.answers import Answer
from neuron_attribution_server.tasks.model_facts import Engine, preparation_of
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import failed_batch, run_batch
from neuron_attribution_server.tasks.wire.messages import Batch, Begun, Computed, Drop, Finished, Prepared, ToWorker
from neuron_attribution_server.tasks.wire.pipe import WorkerEnd

YIELD_SECONDS = 1.0
"""What is prepared for later goes on for so long after a batch, at most, or as long as that took: half of the time."""
LOOK_SECONDS = 0.02
"""The least time between two looks into the pipe: checkpoints may be much closer to each other."""

_log = logging.getLogger(__name__)


class Unwanted(BaseException):
    """Ends a batch that nobody waits for any more. No failure, so that nothing on the way takes it for one."""


class _HungUp(BaseException):
    """The front end has gone while something was prepared, whose own failures end nothing."""


@contextmanager
def _hanging_up() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise _HungUp from error


class BatchRunner:
    """Runs what comes through a pipe, a batch inside another where it comes meanwhile."""

    def __init__(self, front_end: WorkerEnd, engine: Engine) -> None:
        self._front_end = front_end
        self._engine = engine
        self._running: list[int] = []
        self._dropped: set[int] = set()
        self._given_way = 0.0
        self._looked = 0.0
        self._next_look = 0.0
        self._batch_seconds = 0.0

    def serve(self) -> None:
        """Run batches until the pipe closes; meanwhile prepare what may be. Raises EOFError and OSError then.

        What could not be prepared is tried again once a batch could do a part of it.
        """
        preparation = preparation_of(self._engine)
        self._prepare()
        while True:
            done = preparation.done
            self._handle(self._front_end.receive())
            if done < preparation.done < preparation.parts:
                self._prepare()

    def _prepare(self) -> None:
        """Do all that is to be prepared. Batches that come meanwhile run at its checkpoints."""
        preparation = preparation_of(self._engine)
        started, seconds = time.perf_counter(), self._batch_seconds
        self._tell_prepared()
        try:
            with at_checkpoints(self._look_aside):
                while preparation.advance():
                    self._look_aside()
                    with _hanging_up():
                        self._tell_prepared()
        except _HungUp:
            raise EOFError from None
        except Exception:
            _log.exception("what is prepared for later could not be; requests will do it")
            return
        if preparation.parts:
            elapsed = time.perf_counter() - started - (self._batch_seconds - seconds)
            _log.info("%d parts are prepared, in %.1f seconds", preparation.parts, elapsed)

    def _look_aside(self) -> None:
        """At a checkpoint of what is prepared: run what has come, unless a batch has had its time just now."""
        if self._running or time.perf_counter() < self._next_look:
            return
        self._next_look = time.perf_counter() + LOOK_SECONDS
        while self._front_end.has_message():
            before = self._batch_seconds
            with _hanging_up():
                self._handle(self._front_end.receive())
            took = self._batch_seconds - before
            if took:
                self._next_look = time.perf_counter() + min(took, YIELD_SECONDS)
                return

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Batch():
                self._run(message)
            case Drop(number) if number in self._running:  # else it has ended meanwhile
                self._dropped.add(number)

    def _run(self, batch: Batch) -> None:
        self._front_end.send(Begun(batch.number))
        report, started, given_way = BatchReport(), time.perf_counter(), self._given_way
        prepared = preparation_of(self._engine).done
        self._running.append(batch.number)
        try:
            with at_checkpoints(partial(self._look_up, batch.number)):
                computed = partial(self._computed, batch.number)
                outcomes = run_batch(self._engine, batch.tasks, report, computed, checked)
        except Unwanted:
            report.stopped = True
            outcomes = [_unwanted() for _ in batch.tasks]
        finally:
            self._running.remove(batch.number)
            self._dropped.discard(batch.number)
        elapsed = time.perf_counter() - started
        report.seconds = elapsed - (self._given_way - given_way)
        report.tasks = len(batch.tasks)
        report.has_prepared = preparation_of(self._engine).done > prepared
        if self._running:
            self._given_way += report.seconds
        else:
            self._batch_seconds += elapsed
        self._finish(batch, outcomes, report)
        if report.has_prepared:
            self._tell_prepared()

    def _tell_prepared(self) -> None:
        preparation = preparation_of(self._engine)
        self._front_end.send(Prepared(preparation.done, preparation.parts))

    def _look_up(self, number: int) -> None:
        """At a checkpoint of a batch: read what has come."""
        now = time.perf_counter()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        while self._front_end.has_message():
            self._handle(self._front_end.receive())
        if number in self._dropped:
            raise Unwanted

    def _computed(self, number: int) -> None:
        with suppress(OSError):  # the parent has gone; the answers will notice
            self._front_end.send(Computed(number))

    def _finish(self, batch: Batch, outcomes: list[Answer], report: BatchReport) -> None:
        try:
            self._front_end.send(Finished(batch.number, outcomes, pickle.dumps(report)))
        except OSError:
            raise
        except Exception as error:
            _log.exception("outcomes could not be sent")
            failed = failed_batch(error, batch.tasks)
            self._front_end.send(Finished(batch.number, failed, pickle.dumps(report)))


def _unwanted() -> CancelledError:
    return CancelledError("nobody waited for this request any more; its work was stopped", reason="UNWANTED")
