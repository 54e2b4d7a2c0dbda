"""What gRPC adds: a real server process, called over localhost, against the times it reports itself."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import grpc
import numpy as np
from neuron_attribution import AsyncClient, Client, convert
from neuron_attribution.requests import AttributeRequest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from service.demo_server import serving

from benchmarks import bare, markdown
from benchmarks.subject import explanation
from benchmarks.timing import milliseconds, progress, ratios, settled, spread, timed

CALLERS = 32
TOLERANCE = 1e-5
LEAST_OF_FLOOR = 75
TARGET = 0.003
RANKINGS = ("ffn_value_neurons", "attention_value_neurons", "query_ffn_neurons")


@dataclass
class Measured:
    """Seconds per call, in order; a caller's requests per second; how far concurrent answers are from single ones."""

    wall: list = field(default_factory=list)
    reading: list = field(default_factory=list)
    forward: list = field(default_factory=list)
    scoring: list = field(default_factory=list)
    queue: list = field(default_factory=list)
    tokenization: list = field(default_factory=list)
    in_process: list = field(default_factory=list)
    unreported: list = field(default_factory=list)
    building: list = field(default_factory=list)
    bare: list = field(default_factory=list)
    one_caller: list = field(default_factory=list)
    many_callers: list = field(default_factory=list)
    largest_batch: int = 0
    difference: float = 0.0

    @property
    def compute(self):
        return [a + b for a, b in zip(self.forward, self.scoring, strict=True)]

    @property
    def added(self):
        """Of each call, the wall time less the forward pass and scoring it reports and what no engine reports."""
        return [wall - compute - median(self.unreported) for wall, compute in zip(self.wall, self.compute, strict=True)]

    @property
    def in_transit(self):
        """What is neither queue nor tokenization: the wire, the worker's pipe, building the message."""
        columns = zip(self.added, self.queue, self.tokenization, strict=True)
        return [added - queue - tokenization for added, queue, tokenization in columns]


def measure(subject, threads, rounds):
    found = Measured()
    with serving("--threads", str(threads)) as (address, _), Client(address) as client:
        client.attribute(subject.prompts[0])
        for repetition in range(rounds):
            progress(f"gRPC: round {repetition + 1} of {rounds}")
            with settled(), grpc.insecure_channel(address) as channel:
                answer = _calls(subject, services.NeuronAttributionServiceStub(channel), found)
        progress(f"gRPC: {CALLERS} callers")
        _concurrent(subject, address, client, found)
    _bare(subject, answer, found)
    return found


def _calls(subject, stub, found):
    """All prompts over the wire, then all in-process, each as fast as calls that follow one another are."""
    stub.GetModel(messages.GetModelRequest())
    for prompt in subject.prompts:
        request = convert.attribute_request_to_proto(AttributeRequest(prompt=prompt))
        response, wall = timed(lambda request=request: stub.Attribute(request))
        result, reading = timed(lambda response=response: convert.attribute_result_from_proto(response))
        found.wall.append(wall)
        found.reading.append(reading)
        for name in ("forward", "scoring", "queue", "tokenization"):
            getattr(found, name).append(getattr(result.timings, name))
    for prompt in subject.prompts:
        (outcome,), in_process = timed(lambda prompt=prompt: subject.attribute([prompt]))
        found.in_process.append(in_process)
        found.unreported.append(in_process - outcome.forward - outcome.scoring)
        _, building = timed(lambda outcome=outcome: _built(subject, outcome))
        found.building.append(building)
    return response


def _built(subject, outcome):
    return convert.explanations_to_proto(subject.engine.facts.identity, outcome.explanations).SerializeToString()


def _bare(subject, answer, found):
    """As many calls of a server that does nothing but pass on what a worker process answers."""
    request = convert.attribute_request_to_proto(AttributeRequest(prompt=subject.prompts[0])).SerializeToString()
    with (
        TemporaryDirectory() as folder,
        bare.serving(answer.SerializeToString(), Path(folder) / "answer") as address,
        grpc.insecure_channel(address) as channel,
    ):
        bare.added(channel, request, messages.AttributeResponse.FromString)
        progress("gRPC: bare calls")
        with settled():
            for _ in found.wall:
                found.bare.append(bare.added(channel, request, messages.AttributeResponse.FromString))


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


def report(found, conditions, floor):
    """`floor`: the seconds that a request among as many callers takes at least."""
    added = median(found.added)
    reached = 100 * floor * median(found.many_callers)
    equal = "yes" if found.difference <= TOLERANCE else "no"
    return markdown.section(
        "gRPC",
        conditions,
        f"{len(found.wall)} calls of Attribute over localhost to a server process, prompts as token ids, top 10. Added "
        "is the time from the request's message to the response's, minus the forward pass and scoring that the server "
        "reports for the same call, so that noise in the computation cancels, and minus the median of what a call of "
        "the engine in the same process takes beyond those two. Calls follow one another, first all over the wire, "
        "then all in-process.",
        markdown.table(
            ["", "time a call"],
            [
                ["wall time, message to message", milliseconds(found.wall)],
                ["forward + scoring, as reported", milliseconds(found.compute)],
                ["beyond those two, in-process", milliseconds(found.unreported)],
                ["**added**", milliseconds(found.added)],
                ["of it: queue", milliseconds(found.queue)],
                ["of it: tokenization", milliseconds(found.tokenization)],
                ["of it: wire, worker's pipe, building the message", milliseconds(found.in_transit)],
                ["the least: a bare server and a bare worker process pass on such an answer", milliseconds(found.bare)],
                ["and building the message, in-process after such a call", milliseconds(found.building)],
                ["the Python client's dataclasses, on top", milliseconds(found.reading)],
                ["the same through the engine in-process", milliseconds(found.in_process)],
            ],
        ),
        markdown.table(
            ["", "measured"],
            [
                ["one caller, requests a second", spread(found.one_caller)],
                [f"{CALLERS} callers, requests a second", spread(found.many_callers)],
                ["ratio", spread(ratios(found.many_callers, found.one_caller), 2)],
                [
                    "floor of a request's rows and its part of a forward pass, at so many together",
                    milliseconds([floor]),
                ],
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
                [
                    f"{CALLERS} callers: at least {LEAST_OF_FLOOR} % of that floor",
                    f"{reached:.0f} %",
                    "yes" if reached >= LEAST_OF_FLOOR else "no",
                ],
                [f"all {CALLERS} answers equal to their single ones (1e-5)", f"{found.difference:.1e}", equal],
            ],
        ),
    )
