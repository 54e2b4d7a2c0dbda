"""What a run consists of, in the order of its worth: title, the least seconds worth beginning with, what writes it."""

import functools
import gc
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import markdown
from benchmarks.conditions import conditions, one_line
from benchmarks.gpu import counting, measuring

ROOT = Path(__file__).parents[3]
SHAPES = ("llama-7b", "llama-3-8b")
TESTS = ("tests/model/engine/test_on_a_gpu.py", "tests/model/engine/test_batch_reports.py")
BUILDING, TESTING, COUNTING = 40, 60, 30
"""The least seconds that are worth beginning with."""


def everything(options, device, command, page):
    """Tests, shapes and, after the first of these, the counts."""
    if device == "cuda":
        yield "Tests", TESTING, functools.partial(tests, page)
    first, *others = options.shapes
    yield from _shape(first, options, device, command)
    yield from counted_only(options)
    for shape in others:
        yield from _shape(shape, options, device, command)


def counted_only(options):
    """The counts and what is predicted from them."""
    counts = functools.cache(functools.partial(counting.measure, tuple(options.layers)))
    yield "Counted operations", COUNTING, lambda: counting.report(counts())
    yield "Prediction", 1, lambda: counting.report_prediction(counts())


def tests(page):
    """The tests that need a GPU, in a process of their own; without conftest.py, which needs the whole server."""
    command = ["-m", "pytest", "--quiet", "--noconftest", "-p", "no:cacheprovider", "-W", "default", "-m", "gpu"]
    done = subprocess.run([sys.executable, *command, *TESTS], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stdout)
    page.failed |= done.returncode != 0
    lines = done.stdout.splitlines()
    last = "\n".join([line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:])
    return markdown.section(
        "Tests",
        "What a GPU answers is what a CPU does, within 1e-4 in float32 and with the same claims of exactness; bounded "
        "rankings are those of scoring every neuron, a batch is answered as its requests alone, and takes no more "
        f"memory than was predicted: `{shlex.join(['python', *command, *TESTS])}`.",
        f"```text\n{last}\n```",
    )


def _shape(shape, options, device, command):
    """A model's sections; it is made by the first of them and let go after the last."""
    made = []

    def build():
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        made.append(measuring.Measured(shape, device, options.threads, options.section_seconds))
        found = _conditions(made[0], command)
        return markdown.section(made[0].title("conditions"), markdown.table(["condition", "value"], found.items()))

    def measured(measure):
        if not made:
            raise RuntimeError("there is no model, its conditions have failed")
        return measure(made[0], one_line(_conditions(made[0], command)))

    yield f"{shape} shape: conditions", BUILDING, build
    for title, (seconds, measure) in measuring.SECTIONS.items():
        yield f"{shape} shape: {title}", seconds, functools.partial(measured, measure)
    made.clear()


def _conditions(measured, command):
    most = f"{measuring.FEWEST} to {measuring.MOST}, as many as fit in {measured.seconds:.0f} s"
    found = conditions(measured.subject, torch.get_num_threads(), most) | {"command": f"`{command}`"}
    if measured.on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        found["GPU"] = f"{total:.0f} GiB, CUDA {torch.version.cuda}"
    return found
