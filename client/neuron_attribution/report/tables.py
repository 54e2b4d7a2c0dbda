"""What a page says where scripts do not run: the main numbers as HTML tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from neuron_attribution.results import AggregateExplanation, AttributeResult, Explanation, NeuronRanking, Token

RANKINGS = {
    "FFN value neurons": "ffn_value_neurons",
    "FFN value neurons, decreasing": "ffn_value_neurons_decreasing",
    "attention value neurons": "attention_value_neurons",
    "attention value neurons, decreasing": "attention_value_neurons_decreasing",
    "query FFN neurons": "query_ffn_neurons",
    "query FFN neurons, decreasing": "query_ffn_neurons_decreasing",
}

PREDICTED = ("token", "probability", "log probability", "rank")


def attribution_tables(result: AttributeResult) -> str:
    """An attribution as tables."""
    tokens = " ".join(repr(token.text) for token in result.tokens)
    head = f"<h1>{html.escape(tokens)}</h1><p>With scripts this page has charts, and saves its tables as CSV.</p>"
    whole = _aggregate(result.aggregate, result.tokens) if result.aggregate else ""
    return head + whole + "".join(_explanation(explanation, result.tokens) for explanation in result.explanations)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """One table, escaped."""
    lines = [f"<tr>{''.join(_cell('th', column) for column in columns)}</tr>"]
    lines += [f"<tr>{''.join(_cell('td', value) for value in row)}</tr>" for row in rows]
    return f"<table><caption>{html.escape(caption)}</caption>{''.join(lines)}</table>"


def _cell(name: str, value: object) -> str:
    shown = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"<{name}>{html.escape(shown)}</{name}>"


def _explanation(explanation: Explanation, tokens: Sequence[Token]) -> str:
    target = repr(explanation.target.token.text)
    predictions = [
        (repr(item.token.text), item.probability, item.log_probability, item.rank) for item in explanation.predictions
    ]
    before = table(f"Before {target}", PREDICTED, predictions)
    return before + _parts(explanation, tokens)


def _aggregate(aggregate: AggregateExplanation, tokens: Sequence[Token]) -> str:
    answers = {"The answer": aggregate.targets, "The other answer": aggregate.contrast_targets}
    predicted = [
        table(name, PREDICTED, ((repr(i.token.text), i.probability, i.log_probability, i.rank) for i in targets))
        for name, targets in answers.items()
        if targets
    ]
    total = table(f"The {aggregate.aggregate.value}", ("log probability",), [(aggregate.log_probability,)])
    return total + "".join(predicted) + _parts(aggregate, tokens)


def _parts(explanation: Explanation | AggregateExplanation, tokens: Sequence[Token]) -> str:
    parts = []
    if explanation.layers is not None:
        scores = zip(explanation.layers.attention.tolist(), explanation.layers.ffn.tolist(), strict=True)
        parts.append(table("layers", ("layer", "attention", "FFN"), ((n, *pair) for n, pair in enumerate(scores))))
    heads = (*explanation.heads, *explanation.heads_decreasing)
    if heads:
        parts.append(table("heads", ("head", "score"), ((head.head, head.score) for head in heads)))
    rankings = {title: getattr(explanation, name, None) for title, name in RANKINGS.items()}
    parts += [_ranking(title, ranking, tokens) for title, ranking in rankings.items() if ranking is not None]
    return "".join(parts)


def _ranking(title: str, ranking: NeuronRanking, tokens: Sequence[Token]) -> str:
    end = "suppressed" if title.endswith("decreasing") else "promoted"
    rows = (
        (
            neuron.neuron,
            None if neuron.position is None else f"{neuron.position} {tokens[neuron.position].text!r}",
            neuron.score,
            neuron.coefficient,
            " ".join(repr(item.token.text) for item in getattr(neuron, end)),
        )
        for neuron in ranking.neurons
    )
    return table(title, ("neuron", "source position", "score", "coefficient", f"{end} tokens"), rows)
