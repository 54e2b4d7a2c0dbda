"""Eight callers who do nothing wrong, while something else happens: their answers, failures and times."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from neuron_attribution import AttributeResult, Client

from soak.hostile_server import ORDINARY, HostileServer
from soak.mixed import TOLERANCE, difference

CALLERS = 8
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The opposite of hot is",
    "Two plus two equals",
)
OPTIONS = ({}, {"top_k": 30, "projection_top_k": 3}, {"parts": ["layers", "heads"]})


@dataclass
class Seen:
    """What the callers saw of one time, which `began` then: each call, and what was wrong."""

    began: float
    ended: list[tuple[float, float, str]] = field(default_factory=list)
    """Of each call: its seconds, when it ended, and its kind."""
    kinds: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)

    def quantile(self, part: float) -> float:
        """The seconds within which so large a part of the calls was answered."""
        ordered = sorted(seconds for seconds, *_ in self.ended)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    def slowest(self, count: int = 12) -> str:
        """The slowest calls, in the order in which they ended, and when that was."""
        slow = sorted(sorted(self.ended, reverse=True)[:count], key=lambda each: each[1])
        return "slowest: " + ", ".join(f"{kind} {seconds:.1f} s (at {at:.0f} s)" for seconds, at, kind in slow)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        times = ", ".join(f"{name} {self.quantile(part):.2f} s" for name, part in (("p50", 0.5), ("p99", 0.99)))
        return f"{len(self.ended)} calls ({kinds}), {len(self.troubles)} failed or wrong; {times}"


class Ordinary:
    """The callers, and the answers that they were given when they were alone."""

    def __init__(self, server: HostileServer, seed: int) -> None:
        self._server = server
        self._seed = seed
        self._cases = [(prompt, options) for prompt in PROMPTS for options in OPTIONS]
        with server.client(ORDINARY) as client:
            self._expected: list[AttributeResult] = [
                client.attribute(prompt, **options) for prompt, options in self._cases
            ]
        self._rounds = 0

    def during(self, happening: Callable[[], object]) -> Seen:
        """Call without a pause from all callers while something happens; return what they saw."""
        seen, stop = Seen(began=time.monotonic()), threading.Event()
        self._rounds += 1
        callers = [threading.Thread(target=self._calls, args=(number, seen, stop)) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            happening()
        finally:
            stop.set()
            for caller in callers:
                caller.join()
        return seen

    def _calls(self, number: int, seen: Seen, stop: threading.Event) -> None:
        source = random.Random(f"{self._seed} {number} {self._rounds}")
        with self._server.client(ORDINARY) as client:
            while not stop.is_set():
                kind = source.choices(("attribute", "project", "tokenize", "model"), (60, 20, 15, 5))[0]
                began = time.monotonic()
                try:
                    getattr(self, f"_{kind}")(client, source)
                except Exception as error:
                    seen.troubles.append(f"{kind}: {type(error).__name__}: {error}")
                ended = time.monotonic()
                seen.ended.append((ended - began, ended - seen.began, kind))
                seen.kinds[kind] += 1

    def _attribute(self, client: Client, source: random.Random) -> None:
        index = source.randrange(len(self._cases))
        prompt, options = self._cases[index]
        apart = difference(self._expected[index], client.attribute(prompt, **options))
        assert apart <= TOLERANCE, f"{prompt!r} with {options}: off by {apart:.1e}"

    def _project(self, client: Client, source: random.Random) -> None:
        result = client.project_neuron(f"{source.randrange(30)}.{source.randrange(1536)}")
        assert len(result.projections[0].projection.top) == 10

    def _tokenize(self, client: Client, source: random.Random) -> None:
        text = source.choice(PROMPTS)
        assert "".join(token.token.text for token in client.tokenize(text).tokens) == text

    def _model(self, client: Client, _: random.Random) -> None:
        assert client.get_model().sizes.layers == 30
