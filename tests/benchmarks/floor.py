"""The floor: what the products of a full attribution at top 10 must take, whatever else is done.

An exact row costs V d multiply-adds and V exponentials. By the speed of a large product that is one floor. But no step
can begin before the one whose answer it needs, so the vocabulary is read five times, by few rows some of these times,
and every neuron's subvalue once or twice: a product of few rows takes as long as its matrix takes to be read. The floor
of the readings is what each takes by itself here.
"""

from statistics import median

import torch

from benchmarks import markdown
from benchmarks.subject import explanation
from benchmarks.timing import milliseconds, progress, settled, spread, timed

BLOCK = 4096
ROWS = HEADS, BASES, CANDIDATES, POSITIONS, PROJECTIONS = (
    "heads (L H)",
    "bases (2 L + 1)",
    "candidates scored",
    "source positions of the strongest heads",
    "projections (product only)",
)
TRIES = 3
"""Of a product's time, the least of so many counts."""


def measure(subject, repetitions, prompts):
    progress("floor")
    sizes, device = subject.sizes, subject.model.device
    rows = sizes.layers * sizes.heads
    vectors = torch.randn(rows, sizes.hidden_size, device=device)
    weight = torch.randn(sizes.vocabulary, sizes.hidden_size, device=device)
    block = weight[: min(BLOCK, sizes.vocabulary)]
    product, exponential = [], []
    with settled():
        for _ in range(max(3, 3 * repetitions)):
            product.append(2e-9 * rows * len(weight) * sizes.hidden_size / timed(lambda: _blocks(vectors, weight))[1])
            logits = vectors @ block.T
            exponential.append(1e-9 * logits.numel() / timed(logits.exp_)[1])
    found = [_prompt(subject, prompt) for prompt in subject.prompts[:prompts]]
    return product, exponential, found, [_readings(subject, each, weight) for each in found]


def _blocks(vectors, weight):
    for part in weight.split(BLOCK):
        vectors @ part.T


def _readings(subject, rows, weight):
    """Seconds of each product that a prompt's rows are part of, in the order of the steps."""
    sizes = subject.sizes
    heads, bases, candidates, positions, projections = (rows[name] for name in ROWS)
    subvalues = {
        name: [torch.randn(width, sizes.hidden_size, device=weight.device) for _ in range(sizes.layers)]
        for name, width in (("ffn", sizes.ffn_width), ("attention", sizes.heads * sizes.head_size))
    }
    slope = torch.randn(sizes.hidden_size, device=weight.device)

    def scored(count):
        vectors = torch.randn(count, sizes.hidden_size, device=weight.device)
        return _least(lambda: _blocks(vectors, weight))

    def bounded(*names):
        return _least(lambda: [matrix @ slope for name in names for matrix in subvalues[name]])

    probabilities = torch.rand(bases, len(weight), device=weight.device)
    with settled():
        return {
            "base states": scored(bases),
            "their slopes": _least(lambda: probabilities @ weight),
            "slopes and every neuron's subvalue": bounded("ffn", "attention"),
            "heads and candidates": scored(heads + candidates),
            "source positions": scored(positions),
            "query FFN neurons: every FFN subvalue again": bounded("ffn"),
            "projections": scored(projections),
        }


def _least(run):
    return min(timed(run)[1] for _ in range(TRIES))


def _prompt(subject, prompt):
    """The rows of one prompt at top 10, and the seconds of its scoring."""
    sizes = subject.sizes
    subject.forget()
    (outcome,) = subject.attribute([prompt])
    found = explanation(outcome)
    candidates = sum(each.coverage.scored for each in (found.ffn_value_neurons, found.attention_value_neurons))
    named = (found.ffn_value_neurons, found.attention_value_neurons, found.query_ffn_neurons)
    return {
        HEADS: sizes.layers * sizes.heads,
        BASES: 2 * sizes.layers + 1,
        CANDIDATES: candidates,
        POSITIONS: len(found.heads) * len(prompt),
        PROJECTIONS: len({score.neuron for each in named for score in each.neurons}),
        "seconds": outcome.scoring,
    }


def of_a_request(subject, found, callers):
    """Seconds of a request among so many: its rows at the speed of large products, and its part of a forward pass."""
    product, exponential, prompts, _ = found
    sizes = subject.sizes
    sequences = [subject.prompts[index % len(subject.prompts)] for index in range(callers)]
    longest = max(map(len, sequences))
    padded = [(*sequence, *[0] * (longest - len(sequence))) for sequence in sequences]
    forward = _least(lambda: subject.base([*padded])) / callers
    rows = [sum(each[name] for name in ROWS) + each[BASES] for each in prompts]  # the bases twice: for their slopes
    scored = [sum(each[name] for name in ROWS[:4]) for each in prompts]
    multiplied = 2e-9 * median(rows) * sizes.vocabulary * sizes.hidden_size / max(product)
    return forward + multiplied + 1e-9 * median(scored) * sizes.vocabulary / max(exponential)


def report(subject, found, conditions):
    product, exponential, prompts, readings = found
    sizes = subject.sizes
    gigaflops, exponentials = max(product), max(exponential)
    names = ROWS
    costs = {
        name: [
            2e-9 * each[name] * sizes.vocabulary * sizes.hidden_size / gigaflops
            + (0 if "product only" in name else 1e-9 * each[name] * sizes.vocabulary / exponentials)
            for each in prompts
        ]
        for name in names
    }
    rows = [[name, spread([each[name] for each in prompts], 3), milliseconds(costs[name])] for name in names]
    core = [sum(costs[name][i] for name in names[:3]) for i in range(len(prompts))]
    whole = [sum(costs[name][i] for name in names) for i in range(len(prompts))]
    reached = [each["seconds"] for each in prompts]
    read = [
        sum(each.values()) + sum(1e-9 * rows[name] * sizes.vocabulary / exponentials for name in names[:4])
        for each, rows in zip(readings, prompts, strict=True)
    ]

    def share(floors):
        return spread([100 * floor / seconds for floor, seconds in zip(floors, reached, strict=True)], 3, "%")

    return markdown.section(
        "Floor",
        conditions,
        f"Matrix products [{sizes.layers * sizes.heads}, {sizes.hidden_size}] x [{sizes.hidden_size}, {BLOCK}] over "
        f"the vocabulary, float32: {spread(product)} GFLOP/s. Exponentials of such a block: {spread(exponential)} G/s. "
        "The floor takes the best of both, for full attribution at top 10.",
        markdown.table(["exact rows", "rows", "floor"], rows),
        markdown.table(
            ["", "scoring, forward pass apart"],
            [
                ["floor of heads, bases and candidates", milliseconds(core)],
                ["floor of all exact rows", milliseconds(whole)],
                ["reached", milliseconds(reached)],
                ["floor of all rows / reached", share(whole)],
                ["floor of the readings, exponentials included", milliseconds(read)],
                ["floor of the readings / reached", share(read)],
            ],
        ),
        "What each reading takes by itself, the least of three:",
        markdown.table(
            ["reading", "time"], [[name, milliseconds([each[name] for each in readings])] for name in readings[0]]
        ),
    )
