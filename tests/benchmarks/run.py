"""What a run consists of."""

from benchmarks import comparison, curves, floor, large, libraries, markdown, serving, stages, subject
from benchmarks.conditions import conditions, one_line

INTRODUCTION = (
    "Written by `make benchmark`: measured numbers, none by hand. Times are medians (least to largest); ratios are "
    "taken pair by pair within one run, competitors taking turns, so that the machine's noise hits all alike."
)
PLAN = comparison.Plan(20, slowest=6, in_full=1, chunks=2)
QUICK_PLAN = comparison.Plan(2, slowest=2, in_full=0, chunks=1)


def demo(options):
    """Everything, on the demo model; sections as they are done."""
    if not libraries.INSTALLED:
        raise SystemExit("captum and TransformerLens are missing: run `make benchmark`, or install '.[benchmark]'")
    quick, threads = options.quick, options.threads
    repetitions = 1 if quick else 3
    plan = QUICK_PLAN if quick else PLAN
    thing = subject.demo(threads)
    header, line = _header("demo model", thing, options, repetitions)
    yield header
    yield comparison.report(comparison.measure(thing, plan), plan, line)
    measured = floor.measure(thing, repetitions, 1 if quick else 10)
    yield floor.report(thing, measured, line)
    yield stages.report({k: stages.measure(thing, 1 if quick else 5, k) for k in (10, 300)}, line)
    yield curves.report_batch(curves.by_batch(thing, 1 if quick else 2, curves.BATCHES[: 3 if quick else None]), line)
    yield curves.report_count(curves.by_count(thing, repetitions, curves.COUNTS[: 2 if quick else None]), line)
    yield _explained(thing, repetitions, measured, line)
    least = floor.of_a_request(thing, measured, serving.CALLERS)
    yield serving.report(serving.measure(thing, threads, 1 if quick else 2), line, least)
    del thing  # what follows runs in processes of its own
    yield curves.report_tokens(curves.by_tokens(threads, repetitions, curves.TOKENS[: 2 if quick else None]), line)
    yield curves.report_waiting(curves.by_waiting(threads, repetitions), line)


def service(options):
    """What gRPC adds to the demo model, alone."""
    thing = subject.demo(options.threads)
    _, line = _header("demo model", thing, options, 1)
    least = floor.of_a_request(thing, floor.measure(thing, 1, 2), serving.CALLERS)
    return serving.report(serving.measure(thing, options.threads, 1 if options.quick else 2), line, least)


def explained(options):
    """What the tokens of a completion cost, alone."""
    thing = subject.demo(options.threads)
    repetitions = 1 if options.quick else 3
    _, line = _header("demo model", thing, options, repetitions)
    return _explained(thing, repetitions, floor.measure(thing, repetitions, 1), line)


def compared(options):
    """The competitors, alone."""
    thing = subject.demo(options.threads)
    plan = QUICK_PLAN if options.quick else PLAN
    _, line = _header("demo model", thing, options, 1)
    return comparison.report(comparison.measure(thing, plan), plan, line)


def limits(options):
    """The floor and what is reached of it, alone."""
    thing = subject.demo(options.threads)
    repetitions = 1 if options.quick else 3
    _, line = _header("demo model", thing, options, repetitions)
    return floor.report(thing, floor.measure(thing, repetitions, 1 if options.quick else 10), line)


ONLY = {"comparison": compared, "floor": limits, "service": service, "explained": explained}
"""Sections that can be measured alone."""


def _explained(thing, repetitions, measured, line):
    products, exponentials, *_ = measured
    found = curves.by_explained(thing, repetitions, curves.EXPLAINED[:: 4 if repetitions == 1 else 1])
    return curves.report_explained(found, thing.sizes, (max(products), max(exponentials)), line)


def shape(options):
    """A shape with random weights; the tiny one also goes through the comparison."""
    repetitions = 1 if options.quick else 5
    thing = subject.of_shape(options.shape, options.device, options.threads)
    header, line = _header(f"{options.shape} shape", thing, options, repetitions)
    yield header
    if options.shape == "tiny":
        plan = comparison.Plan(prompts=2, slowest=2, in_full=1, chunks=2)
        yield comparison.report(comparison.measure(thing, plan), plan, line)
    yield large.report(large.measure(thing, repetitions), line)
    measured = floor.measure(thing, repetitions, 2)
    yield floor.report(thing, measured, line)
    yield stages.report({10: stages.measure(thing, 2, 10)}, line)
    yield curves.report_batch(curves.by_batch(thing, 1, curves.BATCHES), line)
    yield curves.report_count(curves.by_count(thing, repetitions, curves.COUNTS), line)
    yield _explained(thing, repetitions, measured, line)


def _header(title, thing, options, repetitions):
    counted = f"{repetitions} of each point of a curve; one of each prompt" + (" (quick run)" if options.quick else "")
    found = conditions(thing, options.threads, counted)
    table = markdown.table(["condition", "value"], list(found.items()))
    return f"# Benchmarks: {title}\n\n{INTRODUCTION}\n\n{table}", one_line(found)
