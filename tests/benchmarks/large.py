"""A shape's speed: full attribution against the plain forward pass at one length, and what batches bring."""

from benchmarks import markdown
from benchmarks.subject import explanation
from benchmarks.timing import milliseconds, progress, ratios, settled, spread, timed

TOKENS, TOP_K, BATCH = 128, 100, 16


def measure(subject, repetitions, tokens=TOKENS):
    prompt = subject.long_prompt(tokens)
    batch = [subject.long_prompt(tokens + each)[each:] for each in range(BATCH)]
    found = {"forward": [], "attribution": [], "batch forward": [], "batch": [], "share": []}
    subject.forward([prompt])
    subject.attribute(batch[:1], top_k=TOP_K)
    for repetition in range(repetitions):
        progress(f"{tokens} tokens, repetition {repetition + 1} of {repetitions}")
        with settled():
            found["forward"].append(timed(lambda: subject.forward([prompt]))[1])
            subject.forget()
            (outcome,), seconds = timed(lambda: subject.attribute([prompt], top_k=TOP_K))
            found["attribution"].append(seconds)
            found["batch forward"].append(timed(lambda: subject.forward(batch))[1])
            subject.forget()
            found["batch"].append(timed(lambda: subject.attribute(batch, top_k=TOP_K))[1])
        rankings = (explanation(outcome).ffn_value_neurons, explanation(outcome).attention_value_neurons)
        exist = sum(each.coverage.neurons for each in rankings)
        found["share"].append(100 * sum(each.coverage.scored for each in rankings) / exist)
    return tokens, found


def report(measured, conditions):
    tokens, found = measured
    rates = [BATCH * one / many for one, many in zip(found["attribution"], found["batch"], strict=True)]
    return markdown.section(
        f"Attribution at {tokens} tokens",
        conditions,
        f"Full attribution, top {TOP_K}, every projection computed anew.",
        markdown.table(
            ["", "measured"],
            [
                ["plain forward", milliseconds(found["forward"])],
                ["attribution", milliseconds(found["attribution"])],
                ["attribution / plain forward", spread(ratios(found["attribution"], found["forward"]), 2)],
                [f"plain forward, batch of {BATCH}", milliseconds(found["batch forward"])],
                [f"attribution, batch of {BATCH}", milliseconds(found["batch"])],
                [f"requests a second, batch of {BATCH} / batch of 1", spread(rates, 2)],
                ["neurons scored exactly, in % of those that exist", spread(found["share"], 2)],
            ],
        ),
    )
