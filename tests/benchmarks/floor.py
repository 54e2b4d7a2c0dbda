"""The floor: an exact row costs V d multiply-adds and V exponentials; what of the machine's speed is reached."""

import torch

from benchmarks import markdown
from benchmarks.subject import explanation
from benchmarks.timing import milliseconds, progress, settled, spread, timed

BLOCK = 4096


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
    return product, exponential, [_prompt(subject, prompt) for prompt in subject.prompts[:prompts]]


def _blocks(vectors, weight):
    for part in weight.split(BLOCK):
        vectors @ part.T


def _prompt(subject, prompt):
    """The rows of one prompt at top 10, and the seconds of its scoring."""
    sizes = subject.sizes
    subject.forget()
    (outcome,) = subject.attribute([prompt])
    found = explanation(outcome)
    candidates = sum(each.coverage.scored for each in (found.ffn_value_neurons, found.attention_value_neurons))
    named = (found.ffn_value_neurons, found.attention_value_neurons, found.query_ffn_neurons)
    return {
        "heads (L H)": sizes.layers * sizes.heads,
        "bases (2 L + 1)": 2 * sizes.layers + 1,
        "candidates scored": candidates,
        "source positions of the strongest heads": len(found.heads) * len(prompt),
        "projections (product only)": len({score.neuron for each in named for score in each.neurons}),
        "seconds": outcome.scoring,
    }


def report(subject, found, conditions):
    product, exponential, prompts = found
    sizes = subject.sizes
    gigaflops, exponentials = max(product), max(exponential)
    names = [name for name in prompts[0] if name != "seconds"]
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
    shares = [100 * floor / seconds for floor, seconds in zip(whole, reached, strict=True)]
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
                ["floor of all rows / reached", spread(shares, 3, "%")],
            ],
        ),
    )
