"""A shape on its device: how long an explanation takes beside the plain forward pass, what batches bring, memory."""

import random
import time
from dataclasses import replace
from statistics import median

import torch

from benchmarks import markdown, subject
from benchmarks.gpu.profiling import counts_of
from benchmarks.subject import explanation, task
from benchmarks.timing import milliseconds, progress, ratios, settled, spread, synchronize, timed

TOKENS, BATCH = 128, 16
COUNTS = (10, 100)
MOST = 20
"""Repetitions of one measurement; fewer where its share of the time is used up."""
FEWEST = 3


class Measured:
    """A model of random weights made on its device, prompts of one length, and the time that one section may take."""

    def __init__(self, shape, device, threads, seconds):
        if device == "cuda":  # as the server sets them when it loads a model
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.set_float32_matmul_precision("highest")
        self.shape, self.seconds = shape, seconds
        self.on_gpu = device == "cuda"
        made = subject.of_shape(shape, device, threads)
        chosen = random.Random(0)
        self.prompts = [tuple(chosen.randrange(made.sizes.vocabulary) for _ in range(TOKENS)) for _ in range(BATCH)]
        self.subject = replace(made, prompts=tuple(self.prompts))
        self._warm_up()

    def title(self, text):
        return f"{self.shape} shape: {text}"

    def explain(self, prompts, top_k):
        """Outcomes and seconds, with every projection computed anew."""
        self.subject.forget()
        return timed(lambda: self.subject.attribute(prompts, top_k=top_k))

    def forward(self, prompts):
        """Seconds of the plain forward pass."""
        return timed(lambda: self.subject.forward(prompts))[1]

    def repeatedly(self, measure):
        """What a measurement gives each time, for as long as it may take."""
        began, found = time.monotonic(), []
        with settled():
            while len(found) < FEWEST or (len(found) < MOST and time.monotonic() - began < self.seconds):
                found.append(measure(len(found)))
        return found

    def _warm_up(self):
        progress(f"{self.shape}: warm up")
        for batch in (self.prompts[:1], self.prompts):
            for _ in range(2):
                self.forward(batch)
            for top_k in COUNTS:
                self.explain(batch, top_k)


def speed(measured, line):
    """One prompt: plain forward and explanations take turns."""

    def once(number):
        prompt = [measured.prompts[number % BATCH]]
        return measured.forward(prompt), {k: measured.explain(prompt, k) for k in COUNTS}

    found = measured.repeatedly(once)
    forward = [plain for plain, _ in found]
    rows, splits = [["plain forward", milliseconds(forward), "", "", ""]], []
    for top_k in COUNTS:
        seconds = [times[top_k][1] for _, times in found]
        outcomes = [times[top_k][0][0] for _, times in found]
        ratio = ratios(seconds, forward)
        target = _target(median(ratio) <= 2, "at most 2") if top_k == max(COUNTS) else ""
        scored = spread([100 * _scored(explanation(outcome)) for outcome in outcomes], 2, "%")
        rows.append([f"explanation, top {top_k}", milliseconds(seconds), spread(ratio, 2), target, scored])
        splits.append([f"top {top_k}", *_split(outcomes, seconds)])
    return markdown.section(
        measured.title("forward and explanation"),
        line,
        f"One prompt of {TOKENS} tokens, all parts, every projection computed anew; median (least to largest) of "
        f"{len(found)} repetitions after a warm-up, the device waited for before and after each.",
        markdown.table(["", "time", "x plain forward", "target", "neurons scored"], rows),
        "Where the time goes. Bounds and exact rows are the host's time, of which the last ends when the device does.",
        markdown.table(
            ["", "forward, recorded", "bounds", "exact rows", "the rest of scoring", "making answers"], splits
        ),
    )


def _split(outcomes, seconds):
    parts = [
        [
            outcome.forward,
            outcome.bound,
            outcome.exact,
            outcome.scoring - outcome.bound - outcome.exact,
            whole - outcome.forward - outcome.scoring,
        ]
        for outcome, whole in zip(outcomes, seconds, strict=True)
    ]
    return [milliseconds(column) for column in zip(*parts, strict=True)]


def _scored(found):
    """The part of all neurons that was scored exactly."""
    coverages = [each.coverage for each in (found.ffn_value_neurons, found.attention_value_neurons)]
    return sum(each.scored for each in coverages) / sum(each.neurons for each in coverages)


def _target(met, text):
    return f"{text}: {'met' if met else 'missed'}"


def batches(measured, line):
    """A batch against one request at a time."""

    def once(number):
        one = [measured.prompts[number % BATCH]]
        times = {k: (measured.explain(one, k)[1], measured.explain(measured.prompts, k)[1]) for k in COUNTS}
        return {None: (measured.forward(one), measured.forward(measured.prompts))} | times

    found = measured.repeatedly(once)
    rows = []
    for top_k in (None, *COUNTS):
        alone, together = ([each[top_k][place] for each in found] for place in (0, 1))
        gain = [BATCH * ratio for ratio in ratios(alone, together)]
        target = "" if top_k is None else _target(median(gain) >= 8, "at least 8")
        name = "plain forward" if top_k is None else f"explanation, top {top_k}"
        rows.append([name, milliseconds(alone), milliseconds(together), spread(gain, 2), target])
    return markdown.section(
        measured.title("batch"),
        line,
        f"Different prompts of {TOKENS} tokens, median (least to largest) of {len(found)} repetitions.",
        markdown.table(
            ["", "batch of 1", f"batch of {BATCH}", f"requests a second, {BATCH} against 1", "target"], rows
        ),
    )


def memory(measured, line):
    """What a batch takes at most, beside the prediction that decides which batches are formed."""
    facts, rows = measured.subject.engine.facts, []
    for batch in (1, BATCH):
        prompts = measured.prompts[:batch]
        predicted = facts.memory.batch([task(prompt, top_k=max(COUNTS)) for prompt in prompts])
        taken = _peak(measured, prompts) if measured.on_gpu else None
        shown = ("not measured", "") if taken is None else (_gibibytes(taken), f"{predicted / taken:.1f}")
        rows.append([batch, _gibibytes(predicted), *shown])
    held = [_gibibytes(torch.cuda.memory_allocated())] if measured.on_gpu else ["not measured"]
    return markdown.section(
        measured.title("memory"),
        line,
        f"Beside the weights and what is kept of them ({held[0]}): the peak of what PyTorch allocated while a batch "
        f"of {TOKENS} tokens each ran, top {max(COUNTS)}.",
        markdown.table(["batch", "predicted", "peak", "predicted / peak"], rows),
    )


def _peak(measured, prompts):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    measured.explain(prompts, max(COUNTS))
    return torch.cuda.max_memory_allocated() - before


def _gibibytes(count):
    return f"{count / 2**30:.2f} GiB"


def launches(measured, line):
    """What the device is asked to do, and for how long it works."""
    calls = {
        f"{name}, batch of {batch}": call
        for batch in (1, BATCH)
        for name, call in (
            ("plain forward", lambda prompts=measured.prompts[:batch]: measured.forward(prompts)),
            *(
                (f"explanation, top {k}", lambda prompts=measured.prompts[:batch], k=k: measured.explain(prompts, k))
                for k in COUNTS
            ),
        )
    }
    rows = []
    for name, call in calls.items():
        synchronize()
        counted = counts_of(call, on_gpu=measured.on_gpu)
        busy = "not measured" if counted.busy is None else f"{1000 * counted.busy:.1f} ms"
        rows.append([name, f"{counted.launches:,}", f"{counted.waits:,}", busy])
    what = "PyTorch's profiler" if measured.on_gpu else "operations counted on a CPU, as a stand-in"
    return markdown.section(
        measured.title("launches and waits"),
        line,
        f"Of one call: {what}. Waits are the host's for the device, with a few that the measurement itself adds. "
        "Where kernels take less than the call, the device waits for the host.",
        markdown.table(["", "launches", "waits", "kernels' time"], rows),
    )


SECTIONS = {
    "forward and explanation": (20, speed),
    "batch": (30, batches),
    "memory": (5, memory),
    "launches and waits": (15, launches),
}
"""By title: the least seconds worth beginning with, and what measures it."""
