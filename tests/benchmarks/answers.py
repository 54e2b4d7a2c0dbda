"""What a whole answer costs beside the same tokens explained one by one in the same request, on the demo model.

    cd tests && python -m benchmarks.answers [--tokens 30] [--repetitions 3] [--threads 2]

Three requests take turns: every part of each token; the same with the sums beside; the sums alone. Every projection is
computed anew. Seconds are those of the clock, and those of all threads together in brackets.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median

from neuron_attribution.requests import Aggregate, AttributeOptions
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken

PROMPT = "The capital of Australia is Canberra, and the capital of"
KINDS = {
    "one by one": AttributeOptions(),
    "and their sum": AttributeOptions(aggregate=Aggregate.SUM),
    "the sum alone": AttributeOptions(aggregate=Aggregate.SUM, aggregate_only=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    from benchmarks.subject import demo_engine

    subject = demo_engine(options.threads)
    tasks = _tasks(subject.engine, options.tokens)
    print(
        f"{subject.name}, the last {options.tokens} of {tasks['one by one'].length} tokens, every part, top 10, "
        f"{options.threads} threads of {os.cpu_count()} cores; load average at the start {os.getloadavg()[0]:.1f}\n"
    )
    print(f"| {' | '.join(KINDS)} | and their sum / one by one |\n|{'---:|' * 4}")
    ratios: list[tuple[float, float]] = []
    for _ in range(options.repetitions + 1):  # the first pays for everything's first time
        found = [_measured(subject, task) for task in tasks.values()]
        (seconds, worked), (whole, whole_worked), _ = found
        ratios.append((whole / seconds, whole_worked / worked))
        shown = [f"{wall:.2f} ({own:.2f}) s" for wall, own in found]
        print(f"| {' | '.join(shown)} | {ratios[-1][0]:.3f} ({ratios[-1][1]:.3f}) |", flush=True)
    clock, worked = (median(column) for column in zip(*ratios[1:], strict=True))
    print(f"\nmedian without the first: {clock:.3f} ({worked:.3f})")


def _tasks(engine, count: int) -> dict[str, AttributeTask]:
    from tokenizers import Tokenizer

    prompt = tuple(Tokenizer.from_str(engine.facts.tokenizer).encode(PROMPT, add_special_tokens=False).ids)
    (generated,) = engine.run([AttributeTask(token_ids=prompt, generate=count, options=AttributeOptions(top_k=1))])
    ids = generated.token_ids
    explained = tuple(ExplainedToken(place - 1, ids[place]) for place in range(len(prompt), len(ids)))
    return {name: AttributeTask(token_ids=ids, explained=explained, options=each) for name, each in KINDS.items()}


def _measured(subject, task: AttributeTask) -> tuple[float, float]:
    subject.forget()
    started, worked = time.perf_counter(), time.process_time()
    (outcome,) = subject.engine.run([task])
    if isinstance(outcome, Exception):
        raise outcome
    return time.perf_counter() - started, time.process_time() - worked


if __name__ == "__main__":
    main()
