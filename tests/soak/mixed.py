"""`python -m soak.mixed [--minutes N]`: every kind of call at once, right and wrong; answers and memory are checked.

Exits with 1 when an answer differs from the one given alone, a call fails otherwise than it should, or the memory of a
process in the last tenth of the run is over 5 % above that in the tenth after warm-up, in the median.

The resident memory is shown as well as the part of it that a process has allocated. The rest is mapped files, the
weights above all, whose pages the kernel takes and brings back as it likes.
"""

from __future__ import annotations

import argparse
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from neuron_attribution import AttributeResult, Client, DeadlineExceededError, InvalidArgumentError, NotFoundError
from neuron_attribution.results import Explanation
from service.demo_server import serving

from soak.processes import anonymous_bytes, family, open_files, resident_bytes

REPORT = Path(__file__).parents[2] / "docs" / "soak.md"
CALLERS = 6
TOLERANCE = 1e-5
WARM_UP = 0.15
"""The part of the run after which memory must be flat."""
DRIFT = 0.05
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The opposite of hot is",
    "Once upon a time, in a small village at the foot of a high mountain, there lived an old",
    "My favourite colour is",
    "In 1969, the first man walked on the",
    "The Eiffel Tower is located in the city of",
    "Two plus two equals",
)
OPTIONS = (
    {},
    {"top_k": 100, "projection_top_k": 3},
    {"direction": "decrease", "top_k": 5},
    {"direction": "both", "query_sources": 100},
    {"target": " the", "contrast": " a", "parts": ["layers", "heads", "ffn-value-neurons"]},
    {"parts": ["layers"], "generate": 3},
    {"scoring_method": "coefficient", "parts": ["ffn-value-neurons"]},
)
FAULTS: tuple[tuple[type[Exception], Callable[[Client], object]], ...] = (
    (InvalidArgumentError, lambda client: client.attribute("")),
    (InvalidArgumentError, lambda client: client.attribute("The sun", target=" Parisianly")),
    (InvalidArgumentError, lambda client: client.attribute("word " * 5000)),
    (InvalidArgumentError, lambda client: client.project_neuron("99.0")),
    (NotFoundError, lambda client: client.attribute("The sun", model="another")),
    (DeadlineExceededError, lambda client: client.attribute("The sun rises in the", timeout=0.01)),
)


@dataclass(frozen=True)
class Sample:
    """What one process held at a time, in bytes."""

    seconds: float
    resident: int
    anonymous: int
    files: int


class Soak:
    """The callers, what they saw, and the samples of memory."""

    def __init__(self, address: str, seed: int) -> None:
        self._address = address
        self._seed = seed
        self._cases = list(itertools.product(PROMPTS, OPTIONS))
        self._expected: dict[int, AttributeResult] = {}
        self._stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def learn(self) -> None:
        """Ask for each answer alone."""
        with Client(self._address) as client:
            for index, (prompt, options) in enumerate(self._cases):
                self._expected[index] = client.attribute(prompt, **options)

    def run(self, seconds: float, sample: Callable[[], None]) -> None:
        """Call from several threads; take a sample every few seconds."""
        callers = [threading.Thread(target=self._calls, args=(number,)) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(5, seconds / 40))
            sample()
        self._stop.set()
        for caller in callers:
            caller.join()

    def _calls(self, number: int) -> None:
        generator = random.Random(self._seed + number)
        with Client(self._address, timeout=120) as client:
            while not self._stop.is_set():
                kind = generator.choices(("attribute", "project", "tokenize", "model", "fault"), (60, 10, 10, 5, 15))[0]
                try:
                    getattr(self, f"_{kind}")(client, generator)
                except Exception as error:
                    self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                self.counts[kind] += 1

    def _attribute(self, client: Client, generator: random.Random) -> None:
        index = generator.randrange(len(self._cases))
        prompt, options = self._cases[index]
        apart = difference(self._expected[index], client.attribute(prompt, **options))
        if not apart <= TOLERANCE:
            self.wrong.append(f"{prompt!r} with {options}: off by {apart:.1e}")

    def _project(self, client: Client, generator: random.Random) -> None:
        layer, index = generator.randrange(30), generator.randrange(1536)
        result = client.project_neuron(f"{layer}.{index}")
        assert len(result.projections[0].projection.top) == 10

    def _tokenize(self, client: Client, generator: random.Random) -> None:
        text = generator.choice(PROMPTS)
        assert "".join(token.token.text for token in client.tokenize(text).tokens) == text

    def _model(self, client: Client, _: random.Random) -> None:
        assert client.get_model().sizes.layers == 30

    def _fault(self, client: Client, generator: random.Random) -> None:
        expected, call = generator.choice(FAULTS)
        try:
            call(client)
        except expected:
            return
        raise AssertionError(f"{expected.__name__} was not raised")


def main() -> int:
    arguments = _arguments()
    seconds = 60 * arguments.minutes
    with serving() as (address, process):
        soak = Soak(address, seed=0)
        soak.learn()
        pids = family(process.pid)
        samples: dict[int, list[Sample]] = {pid: [] for pid in pids}
        take = partial(_sample, samples, time.monotonic())
        soak.run(seconds, take)
        alive = family(process.pid) == pids
    text, drift = _report(soak, list(samples.values()), seconds)
    arguments.report.write_text(text)
    print(text)
    return int(bool(soak.wrong) or drift > DRIFT or not alive)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak.mixed", description="Mixed load for a while.")
    parser.add_argument("--minutes", type=float, default=20, help="how long")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the table is written")
    return parser.parse_args()


def _sample(samples: dict[int, list[Sample]], start: float) -> None:
    for pid, taken in samples.items():
        now = time.monotonic() - start
        taken.append(Sample(now, resident_bytes(pid), anonymous_bytes(pid), open_files(pid)))


def difference(alone: AttributeResult, now: AttributeResult) -> float:
    """The largest difference of any score; infinite where tokens, neurons or their number differ."""
    if alone.tokens != now.tokens or len(alone.explanations) != len(now.explanations):
        return float("inf")
    return max(itertools.starmap(_largest, zip(alone.explanations, now.explanations, strict=True)))


def _largest(alone: Explanation, now: Explanation) -> float:
    differences = [0.0]
    for name in ("ffn_value_neurons", "attention_value_neurons", "query_ffn_neurons"):
        for field in (name, f"{name}_decreasing"):
            a, b = getattr(alone, field), getattr(now, field)
            if (a is None) != (b is None):
                return float("inf")
            if a is not None:
                differences.append(_apart([n.score for n in a.neurons], [n.score for n in b.neurons]))
    if alone.layers is not None:
        for name in ("attention", "ffn"):
            differences.append(_apart(getattr(alone.layers, name), getattr(now.layers, name)))
    return max(differences)


def _apart(a: object, b: object) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max(initial=0)) if a.shape == b.shape else float("inf")


PROCESSES = ("front end", "Python's resource tracker", "worker")
"""A server's processes in the order in which they start."""


def _report(soak: Soak, processes: list[list[Sample]], seconds: float) -> tuple[str, float]:
    rows, drifts = [], []
    for number, samples in enumerate(processes):
        settled = [sample for sample in samples if sample.seconds >= WARM_UP * seconds]
        cells = [PROCESSES[number]]
        for kind in ("anonymous", "resident"):
            texts, drift = _course([getattr(sample, kind) for sample in settled])
            cells += texts
            drifts.append(drift)
        rows.append(f"| {' | '.join(cells)} | {settled[0].files} → {settled[-1].files} |")
    calls = sum(soak.counts.values())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(soak.counts.items()))
    wrong = "\n".join(f"- {line}" for line in soak.wrong[:20])
    return (
        f"""# Soak: mixed load

Written by `python -m soak.mixed`: a server process on the demo model, {CALLERS} callers for {seconds / 60:g} minutes,
{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Every attribution is compared with the answer given alone, to {TOLERANCE:g};
faults are bad requests and deadlines of 10 ms, which must fail as they should.

{calls:,} calls ({kinds}), {calls / seconds:.1f} a second; **{len(soak.wrong)} wrong**.

{wrong}

Memory in MiB after warm-up ({WARM_UP:.0%} of the run): medians of the first and of the last tenth of the samples, and
the most in between. Allocated is what a process asked for; resident adds the pages of files it maps, the weights above
all, which the kernel takes and brings back as it likes.

| process | allocated at first | most | at last | drift | resident at first | most | at last | drift | open files |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(rows)}
""",
        max(drifts),
    )


def _course(bytes_held: Sequence[int]) -> tuple[list[str], float]:
    """The first, most and last in MiB and the drift, as texts; and the drift."""
    tenth = max(1, len(bytes_held) // 10)
    first, last = median(bytes_held[:tenth]), median(bytes_held[-tenth:])
    drift = last / first - 1
    return [*(f"{value / 2**20:,.0f}" for value in (first, max(bytes_held), last)), f"{drift:+.1%}"], drift


if __name__ == "__main__":
    raise SystemExit(main())
