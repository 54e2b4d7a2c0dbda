"""How time and memory grow: with tokens, explained tokens, the batch, k, and with threads that spin while they wait."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from neuron_attribution.requests import ALL_PARTS, Part

from benchmarks import markdown
from benchmarks.timing import milliseconds, progress, ratios, settled, spread, timed

TOKENS = (8, 32, 128, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32)
COUNTS = (10, 100, 300, 1000)
EXPLAINED = (1, 2, 5, 10, 30)
PROMPT_TOKENS = 15
PART_SETS = {
    "all parts": ALL_PARTS,
    "layers": frozenset({Part.LAYERS}),
    "value neurons": frozenset({Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS}),
}
WAITING = ("PASSIVE", "ACTIVE")
LEAST_OF_FLOOR = 60
ONCE_FROM = BATCHES.index(16)


def fresh(arguments, **environment):
    """The measurement of fresh.py in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fresh", *map(str, arguments)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path} | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def by_tokens(threads, repetitions, lengths):
    found = []
    for tokens in lengths:
        progress(f"curve: {tokens} tokens")
        found.append(fresh([tokens, threads, 1 if tokens > 512 else repetitions]))
    return found


def by_waiting(threads, repetitions):
    found = {}
    for policy in WAITING:
        progress(f"waiting threads: {policy}")
        found[policy] = fresh([17, threads, 2 * repetitions + 1], OMP_WAIT_POLICY=policy)
    return found


def by_batch(subject, repetitions, batches):
    found = {batch: [] for batch in batches}
    prompts = subject.prompts * 2
    for repetition in range(repetitions):
        for batch in batches[: None if repetition == 0 else ONCE_FROM]:
            progress(f"curve: batch of {batch}")
            subject.forget()
            chosen = [prompts[(repetition + each) % len(prompts)] for each in range(batch)]
            with settled():
                found[batch].append(batch / timed(lambda chosen=chosen: subject.attribute(chosen))[1])
    return found


def by_count(subject, repetitions, counts):
    found = {count: [] for count in counts}
    for repetition in range(repetitions):
        for count in counts:
            progress(f"curve: top {count}")
            subject.forget()
            prompt = subject.prompts[repetition % len(subject.prompts)]
            with settled():
                found[count].append(timed(lambda p=prompt, k=count: subject.attribute([p], top_k=k))[1])
    return found


def by_explained(subject, repetitions, counts):
    """Seconds of the last so many tokens of a completion, by parts and count."""
    text = subject.long_prompt(PROMPT_TOKENS + max(EXPLAINED))
    found = {name: {count: [] for count in counts} for name in PART_SETS}
    for _ in range(repetitions):
        for name, parts in PART_SETS.items():
            for count in counts:
                progress(f"curve: {name} of {count} explained tokens")
                subject.forget()
                with settled():
                    seconds = timed(lambda parts=parts, count=count: subject.explain_last(text, count, parts=parts))[1]
                found[name][count].append(seconds)
    return found


def report_tokens(found, conditions):
    rows = [
        [
            each["tokens"],
            milliseconds(each["forward"]),
            milliseconds(each["attribution"]),
            spread(ratios(each["attribution"], each["forward"]), 2),
            f"{each['loaded']:.0f} MB",
            f"{each['peak']:.0f} MB",
            f"{each['growth']:.0f} MB",
            f"{1000 * each['growth'] / each['tokens']:.0f} kB",
        ]
        for each in found
    ]
    header = [
        "tokens", "plain forward", "attribution, top 10", "ratio", "resident once loaded", "peak of the attribution",
        "growth", "growth a token",
    ]  # fmt: skip
    xs = [each["tokens"] for each in found]
    return markdown.section(
        "Tokens",
        conditions,
        "Every length in a process of its own, the engine alone while memory is measured; the plain model is loaded "
        "afterwards and both take turns. Peak memory is Linux' VmHWM, reset once the engine is loaded and warm.",
        markdown.table(header, rows),
        markdown.chart("attribution, top 10", "tokens", xs, "seconds", [median(each["attribution"]) for each in found]),
        markdown.chart("growth of resident memory", "tokens", xs, "MB", [each["growth"] for each in found]),
    )


def report_batch(found, conditions):
    one = found[min(found)]
    rows = [[batch, spread(rates, 3), spread(ratios(rates, one[: len(rates)]), 2)] for batch, rates in found.items()]
    return markdown.section(
        "Batch",
        conditions,
        "Different prompts in one batch, top 10, in-process; prompts repeat above twenty.",
        markdown.table(["batch", "requests a second", "x batch of 1"], rows),
    )


def report_explained(found, sizes, speeds, conditions):
    """`speeds`: matrix products in GFLOP/s and exponentials in G/s, the best that this machine was seen to do."""
    gigaflops, exponentials = speeds
    row = 2e-9 * sizes.vocabulary * sizes.hidden_size / gigaflops + 1e-9 * sizes.vocabulary / exponentials
    bases, heads = 2 * sizes.layers + 1, sizes.layers * sizes.heads
    parts = list(found)
    counts = list(found[parts[0]])
    rows = [
        [
            count,
            *(
                cell
                for name in parts
                for cell in (
                    milliseconds(found[name][count]),
                    spread(ratios(found[name][count], found[name][counts[0]]), 2),
                )
            ),
            f"{1000 * count * bases * row:,.0f} ms",
            f"{1000 * count * (bases + heads) * row:,.0f} ms",
        ]
        for count in counts
    ]
    header = [
        "explained tokens",
        *(cell for name in parts for cell in (name, "x one token")),
        f"floor: {bases} bases a token",
        f"floor: those and {heads} heads",
    ]
    most, everything = counts[-1], found[parts[0]]
    ratio = median(ratios(everything[most], everything[counts[0]]))
    reached = 100 * most * (bases + heads) * row / median(everything[most])
    floor = most * (bases + heads) * row / median(everything[counts[0]])
    return markdown.section(
        "Explained tokens",
        conditions,
        f"The last tokens of one completion, {PROMPT_TOKENS} tokens of prompt and {max(EXPLAINED)} of completion, "
        "explained together from one teacher-forced pass, top 10, in-process. The floor is what the exact rows of the "
        "base states, and of those and the heads, take at the best speed seen in this run, with nothing else counted.",
        markdown.table(header, rows),
        markdown.table(
            ["target", "measured", "met", "floor of bases and heads alone"],
            [
                [
                    f"{most} tokens, all parts: less than 2 x the last token alone",
                    f"{ratio:.1f} x",
                    "yes" if ratio < 2 else "no",
                    f"{floor:.1f} x",
                ],
                [
                    f"{most} tokens, all parts: at least {LEAST_OF_FLOOR} % of the floor of bases and heads",
                    f"{reached:.0f} %",
                    "yes" if reached >= LEAST_OF_FLOOR else "no",
                    "-",
                ],
            ],
        ),
    )


def report_count(found, conditions):
    first = found[min(found)]
    rows = [[count, milliseconds(times), spread(ratios(times, first), 2)] for count, times in found.items()]
    return markdown.section(
        "Top k", conditions, "", markdown.table(["k", "full attribution", f"x k = {min(found)}"], rows)
    )


def report_waiting(found, conditions):
    rows = [[name, milliseconds(each["forward"]), milliseconds(each["attribution"])] for name, each in found.items()]
    return markdown.section(
        "Waiting threads",
        conditions,
        "The same with OpenMP threads that sleep (PASSIVE) and that spin (ACTIVE) while they wait, 17 tokens. "
        "The two processes run one after another, so only large differences mean something on a busy machine.",
        markdown.table(["OMP_WAIT_POLICY", "plain forward", "attribution, top 10"], rows),
    )
