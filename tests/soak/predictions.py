"""Predicted against measured worker seconds and memory, over random requests of every kind that a server allows.

    cd tests && python -m soak.predictions [--count 200] [--seed 0] [--output FILE.md]

The demo model runs in this process as it does in a worker's; each request runs alone, in random order, and the
predictions learn from those before, as a server's do. A worker's memory is predicted as what it has when the model is
loaded and what the request takes beside, and measured as the most that it had meanwhile. Exit status 1 where the median
of |measured / predicted - 1| is over 30 %, of seconds or of a worker's memory, where a request took over three times
the predicted seconds, or where one took more memory than predicted.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from neuron_attribution import convert
from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.requests import AttributeRequest, InterveneRequest
from neuron_attribution.traces import TraceRequest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.service.served_model import ServedModel
from neuron_attribution_server.model.process.main import load_measured
from neuron_attribution_server.settings import heap
from neuron_attribution_server.settings.config import LoadSettings, ServerConfig
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import run_batch
from neuron_attribution_server.tasks.tasks import AttributeTask, InterveneTask, Task, TraceTask

from soak.random_requests import RandomRequests, Request

MEDIAN_ERROR = 0.3
MOST = 3.0


@dataclass(frozen=True)
class Measured:
    """One request: what was predicted, and what it took."""

    kind: str
    predicted: float
    seconds: float
    loaded_bytes: int
    predicted_bytes: int
    taken_bytes: int
    task: Task

    @property
    def ratio(self) -> float:
        return self.seconds / self.predicted

    @property
    def of_worker(self) -> float:
        """The most memory that the worker had, as a part of what was predicted of all it has."""
        return (self.loaded_bytes + self.taken_bytes) / (self.loaded_bytes + self.predicted_bytes)

    @property
    def of_request(self) -> float:
        """The same of what the request takes by itself."""
        return self.taken_bytes / self.predicted_bytes


def prepared(model: ServedModel, request: Request) -> Task:
    """The task that a server makes of a request. Raises what it refuses it with."""
    if isinstance(request, AttributeRequest):
        return model.prepare_attribution(convert.attribute_request_to_proto(request)).task
    if isinstance(request, InterveneRequest):
        return model.prepare_intervention(convert.intervene_request_to_proto(request)).task
    if isinstance(request, TraceRequest):
        return model.prepare_trace(convert.trace_request_to_proto(request)).task
    return model.prepare_projection(convert.project_neuron_request_to_proto(request))


def kind_of(task: Task) -> str:
    if isinstance(task, AttributeTask):
        method = task.options.scoring_method.value
        if task.options.exhaustive:
            return "attribute, exhaustive"
        if task.contrast is not None:
            return "attribute, contrast"
        return f"attribute, {method}" + (", generated" if task.generate else "")
    if isinstance(task, InterveneTask):
        return "intervene, generated" if task.generate else "intervene"
    if isinstance(task, TraceTask):
        return "trace" if task.options.measure else "trace, unmeasured"
    return "project"


def status_bytes(name: str) -> int:
    found = re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def tidied() -> int:
    """What the process has in memory, less what is free."""
    gc.collect()
    heap.give_back()
    return status_bytes("VmRSS")


def measure(engine, model: ServedModel, task: Task, loaded: int) -> Measured:
    """Memory counts from what the model takes: what requests before left behind counts, too."""
    predicted = model.predictor.seconds([task])
    tidied()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    started = time.perf_counter()
    [answer] = run_batch(engine, [task], BatchReport())
    seconds = time.perf_counter() - started
    taken = status_bytes("VmHWM") - loaded
    if isinstance(answer, NeuronAttributionError):
        raise answer
    model.predictor.learn([task], seconds)
    memory = engine.facts.memory.batch([task])
    return Measured(kind_of(task), predicted, seconds, loaded, memory, taken, task)


def measure_all(count: int, seed: int) -> tuple[list[Measured], int]:
    """What so many allowed requests took, and how many were refused meanwhile."""
    engine = load_measured(LoadSettings("demo"))
    facts = engine.facts
    model = ServedModel(facts, ServerConfig(model="demo").limits(facts.maximum_tokens))
    info = convert.model_info_from_proto(model.describe(messages.GetModelRequest()))
    requests, found, refused = RandomRequests(info, seed), [], 0
    loaded = tidied()
    run_batch(engine, [prepared(model, AttributeRequest(prompt="The"))], BatchReport())
    while len(found) < count:
        try:
            task = prepared(model, requests.any())
        except NeuronAttributionError as error:
            refused += 1
            print(f"refused: {error.message}", flush=True)
            continue
        found.append(measure(engine, model, task, loaded))
        last = found[-1]
        print(
            f"{len(found):4} {last.seconds:8.2f} s of {last.predicted:8.2f} ({last.ratio:4.2f}), "
            f"{last.taken_bytes >> 20:5} of {last.predicted_bytes >> 20:5} MiB  {last.kind}",
            flush=True,
        )
        if not 0.5 < last.ratio < 2:
            print(f"     {described(task)}", flush=True)
    return found, refused


def described(task: Task) -> str:
    """What a task asks for, long lists by their lengths."""
    asked = {field.name: getattr(task, field.name) for field in fields(task)}
    options = asked.pop("options", None)
    if options is not None:
        asked |= {field.name: getattr(options, field.name) for field in fields(options)}
        asked["parts"] = sorted(part.value for part in options.parts)
    shown = {name: len(value) if isinstance(value, tuple) else value for name, value in asked.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value not in (0, None, False))


def table(found: list[Measured]) -> str:
    kinds = defaultdict(list)
    for each in found:
        kinds[each.kind].append(each)
    rows = [
        "| kind | requests | seconds, in all | seconds / predicted: median | least | most | "
        "worker's memory / predicted: median | most | beside the model: most |"
    ]
    rows.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for kind, some in [*sorted(kinds.items()), ("**all**", found)]:
        ratios = [each.ratio for each in some]
        memory = [each.of_worker for each in some]
        rows.append(
            f"| {kind} | {len(some)} | {sum(each.seconds for each in some):.1f} | {median(ratios):.2f} | "
            f"{min(ratios):.2f} | {max(ratios):.2f} | {median(memory):.2f} | {max(memory):.2f} | "
            f"{max(each.of_request for each in some):.2f} |"
        )
    return "\n".join(rows)


def heading(count: int, seed: int) -> str:
    return f"""# Soak: predictions

Written by `python -m soak.predictions --count {count} --seed {seed}`: random requests of every kind
that a server allows, on the demo model, one by one, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores. Each was
predicted before it ran, and the predictions learned from those before it.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a Markdown file to write the table to")
    arguments = parser.parse_args()
    found, refused = measure_all(arguments.count, arguments.seed)
    error = median(abs(each.ratio - 1) for each in found)
    most, memory = max(each.ratio for each in found), max(each.of_request for each in found)
    memory_error = median(abs(each.of_worker - 1) for each in found)
    text = (
        f"{table(found)}\n\n"
        f"Seconds: median of |measured / predicted - 1| {error:.0%}; most: {most:.2f} times the prediction.\n"
        f"A worker's memory: median of |measured / predicted - 1| {memory_error:.0%}; "
        f"the model takes {found[0].loaded_bytes >> 20} MiB of it.\n"
        f"What a request takes beside the model: {memory:.0%} of the prediction at most.\n"
        f"{refused} random requests were refused, as over a limit."
    )
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(f"{heading(arguments.count, arguments.seed)}\n{text}\n")
    return int(max(error, memory_error) > MEDIAN_ERROR or most > MOST or memory > 1)


if __name__ == "__main__":
    sys.exit(main())
