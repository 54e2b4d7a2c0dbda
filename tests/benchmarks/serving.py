"""What gRPC adds: a real server process, called over localhost, against the times it reports itself."""

import asyncio
import time
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from neuron_attribution import AsyncClient, Client
from service.demo_server import serving

from benchmarks import markdown
from benchmarks.subject import explanation
from benchmarks.timing import milliseconds, progress, ratios, settled, spread, timed

CALLERS = 32
TOLERANCE = 1e-5
TARGET = 0.003
RANKINGS = ("ffn_value_neurons", "attention_value_neurons", "query_ffn_neurons")


@dataclass
class Measured:
    """Seconds per call, in order; a caller's requests per second; how far concurrent answers are from single ones."""

    wall: list = field(default_factory=list)
    forward: list = field(default_factory=list)
    scoring: list = field(default_factory=list)
    queue: list = field(default_factory=list)
    tokenization: list = field(default_factory=list)
    in_process: list = field(default_factory=list)
    one_caller: list = field(default_factory=list)
    many_callers: list = field(default_factory=list)
    largest_batch: int = 0
    difference: float = 0.0

    @property
    def added(self):
        columns = zip(self.wall, self.forward, self.scoring, strict=True)
        return [wall - forward - scoring for wall, forward, scoring in columns]

    @property
    def in_transit(self):
        """What is neither queue nor tokenization: the wire, conversions, the worker's pipe."""
        columns = zip(self.added, self.queue, self.tokenization, strict=True)
        return [added - queue - tokenization for added, queue, tokenization in columns]


def measure(subject, threads, rounds):
    found = Measured()
    with serving("--threads", str(threads)) as (address, _), Client(address) as client:
        client.attribute(subject.prompts[0])
        for repetition in range(rounds):
            progress(f"gRPC: round {repetition + 1} of {rounds}")
            with settled():
                _calls(subject, client, found)
        progress(f"gRPC: {CALLERS} callers")
        _concurrent(subject, address, client, found)
    return found


def _calls(subject, client, found):
    """Every prompt over the wire, then in-process; both know their projections from the first round on."""
    for prompt in subject.prompts:
        result, wall = timed(lambda prompt=prompt: client.attribute(prompt))
        found.wall.append(wall)
        for name in ("forward", "scoring", "queue", "tokenization"):
            getattr(found, name).append(getattr(result.timings, name))
        found.in_process.append(timed(lambda prompt=prompt: subject.attribute([prompt]))[1])


def _concurrent(subject, address, client, found):
    prompts = [prompt[: len(prompt) - cut] for cut in (0, 1) for prompt in subject.prompts][:CALLERS]
    start = time.perf_counter()
    alone = [client.attribute(prompt) for prompt in prompts]
    middle = time.perf_counter()
    together, seconds = asyncio.run(_together(address, prompts))
    found.one_caller.append(len(prompts) / (middle - start))
    found.many_callers.append(len(prompts) / seconds)
    found.largest_batch = max(found.largest_batch, *(each.timings.batch_requests for each in together))
    pairs = zip(alone, together, strict=True)
    found.difference = max(found.difference, *(_difference(*map(explanation, pair)) for pair in pairs))


async def _together(address, prompts):
    async with AsyncClient(address) as client:
        await client.get_model()
        start = time.perf_counter()
        answers = await asyncio.gather(*[client.attribute(prompt) for prompt in prompts])
        return answers, time.perf_counter() - start


def _difference(alone, together):
    """The largest difference of any score, relative to the largest score of its part, or to 1 where that is less."""
    assert alone.target.token == together.target.token
    pairs = [(alone.head_scores, together.head_scores)]
    pairs += [(getattr(alone.layers, name), getattr(together.layers, name)) for name in ("attention", "ffn")]
    pairs += [tuple(_scores(getattr(each, name)) for each in (alone, together)) for name in RANKINGS]
    return max(float(np.abs(a - b).max() / max(1, np.abs(a).max())) for a, b in pairs)


def _scores(ranking):
    return np.array([score.score for score in ranking.neurons])


def report(found, conditions):
    added = median(found.added)
    equal = "yes" if found.difference <= TOLERANCE else "no"
    return markdown.section(
        "gRPC",
        conditions,
        f"{len(found.wall)} calls of Attribute over localhost to a server process, prompts as token ids, top 10. Added "
        "is the client's wall time minus the forward pass and scoring that the server reports for the same call, so "
        "that noise in the computation cancels.",
        markdown.table(
            ["", "time a call"],
            [
                ["client's wall time", milliseconds(found.wall)],
                [
                    "forward + scoring, as reported",
                    milliseconds([a + b for a, b in zip(found.forward, found.scoring, strict=True)]),
                ],
                ["**added**", milliseconds(found.added)],
                ["of it: queue", milliseconds(found.queue)],
                ["of it: tokenization", milliseconds(found.tokenization)],
                ["of it: wire, conversions, worker's pipe", milliseconds(found.in_transit)],
                ["the same through the engine in-process", milliseconds(found.in_process)],
            ],
        ),
        markdown.table(
            ["", "measured"],
            [
                ["one caller, requests a second", spread(found.one_caller)],
                [f"{CALLERS} callers, requests a second", spread(found.many_callers)],
                ["ratio", spread(ratios(found.many_callers, found.one_caller), 2)],
                ["largest batch", found.largest_batch],
                ["largest difference of a score, alone and together", f"{found.difference:.1e} of the largest"],
            ],
        ),
        "### Targets of the service",
        markdown.table(
            ["target", "measured", "met"],
            [
                [
                    f"at most {1000 * TARGET:.0f} ms added (median)",
                    f"{1000 * added:.2f} ms",
                    "yes" if added <= TARGET else "no",
                ],
                [f"all {CALLERS} answers equal to their single ones (1e-5)", f"{found.difference:.1e}", equal],
            ],
        ),
    )
