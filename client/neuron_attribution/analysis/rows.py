"""Answers become rows of the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from neuron_attribution.analysis.corpus import CorpusItem
from neuron_attribution.analysis.tables import SCHEMAS, Tables
from neuron_attribution.errors import InvalidArgumentError, NeuronAttributionError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron
from neuron_attribution.results import (
    AttributeResult,
    Coverage,
    Explanation,
    HeadScore,
    ModelIdentity,
    NeuronRanking,
    NeuronScore,
    ProjectedToken,
    Projection,
    Scores,
)

OK = "ok"
RANKINGS = (
    ("ffn", "increase", "ffn_value_neurons"),
    ("ffn", "decrease", "ffn_value_neurons_decreasing"),
    ("attention", "increase", "attention_value_neurons"),
    ("attention", "decrease", "attention_value_neurons_decreasing"),
    ("query", "increase", "query_ffn_neurons"),
    ("query", "decrease", "query_ffn_neurons_decreasing"),
)
"""Kind, direction, and where an explanation has the ranking."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ItemRows:
    """The rows of one prompt. A prompt that failed has a row that says why, and no model."""

    index: int
    tables: Tables
    model: ModelIdentity | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no explanation."""
        return self.model is None


def unreadable(item: CorpusItem) -> ItemRows:
    """The rows of a prompt that the corpus gives no request for."""
    return failed_rows(item, InvalidArgumentError(item.problem, reason="UNREADABLE_ROW"))


def failed_rows(item: CorpusItem, error: NeuronAttributionError) -> ItemRows:
    """The rows of a prompt that failed."""
    return ItemRows(item.index, _tables(prompts=[_prompt_row(item) | {"status": error.reason, "message": str(error)}]))


def result_rows(item: CorpusItem, result: AttributeResult) -> ItemRows:
    """The rows of a prompt that was explained."""
    numbered = list(enumerate(result.explanations))
    tables = _tables(
        prompts=[_prompt_row(item) | _answer_row(result)],
        timings=[{"prompt": item.index} | {name: getattr(result.timings, name) for name in _TIMES}],
        explanations=[_key(item, number) | _explanation_row(each) for number, each in numbered],
        neurons=[row for number, each in numbered for row in _neuron_rows(_key(item, number), each)],
    )
    return ItemRows(item.index, tables, result.model)


_TIMES = [name for name in SCHEMAS["timings"].names if name != "prompt"]


def _tables(**rows: Sequence[Row]) -> Tables:
    return {name: pa.Table.from_pylist(rows.get(name, []), schema=schema) for name, schema in SCHEMAS.items()}


def _key(item: CorpusItem, number: int) -> Row:
    return {"prompt": item.index, "explained": number, "type": item.type}


def _prompt_row(item: CorpusItem) -> Row:
    return {"prompt": item.index, "id": item.id, "type": item.type, "answer": item.answer, "text": item.text}


def _answer_row(result: AttributeResult) -> Row:
    return {
        "status": OK,
        "token_ids": [token.id for token in result.tokens],
        "tokens": [token.text for token in result.tokens],
        "explained": len(result.explanations),
        "model": result.model.name,
        "revision": result.model.revision,
        "dtype": result.model.dtype,
    }


def _explanation_row(explanation: Explanation) -> Row:
    target = explanation.target
    return {
        "position": explanation.position,
        "target_id": target.token.id,
        "target": target.token.text,
        "probability": target.probability,
        "log_probability": target.log_probability,
        "rank": target.rank,
        "contrast": explanation.contrast and explanation.contrast.token.text,
        "own_prediction": next((each.token.text for each in explanation.predictions), None),
        "head_scores": _numbers(explanation.head_scores),
        "heads": _head_rows([*explanation.heads, *explanation.heads_decreasing]),
        **_layer_row(explanation),
        **_coverage_row("ffn", explanation.ffn_value_neurons or explanation.ffn_value_neurons_decreasing),
        **_coverage_row(
            "attention", explanation.attention_value_neurons or explanation.attention_value_neurons_decreasing
        ),
    }


def _layer_row(explanation: Explanation) -> Row:
    layers = explanation.layers
    if layers is None:
        return {}
    return {
        "embedding_log_probability": layers.embedding_log_probability,
        "final_log_probability": layers.final_log_probability,
        "remainder": layers.remainder,
        "attention_scores": _numbers(layers.attention),
        "ffn_scores": _numbers(layers.ffn),
    }


def _coverage_row(kind: str, ranking: NeuronRanking | None) -> Row:
    if ranking is None:
        return {}
    coverage: Coverage = ranking.coverage
    return {f"{kind}_{name}": getattr(coverage, name) for name in ("neurons", "bounded", "scored", "exact")}


def _numbers(scores: Scores | None) -> list[Any] | None:
    return None if scores is None else scores.tolist()


def _head_rows(heads: Iterable[HeadScore]) -> list[Row]:
    return [{"layer": each.head.layer, "head": each.head.head, "score": each.score} for each in heads]


def _neuron_rows(key: Row, explanation: Explanation) -> Iterable[Row]:
    for kind, direction, name in RANKINGS:
        ranking: NeuronRanking | None = getattr(explanation, name)
        for rank, score in enumerate(ranking.neurons if ranking else (), 1):
            yield key | {"kind": kind, "direction": direction, "rank": rank} | _neuron_row(score)


def _neuron_row(score: NeuronScore) -> Row:
    neuron, projection = score.neuron, score.projection or Projection()
    return {
        "layer": neuron.layer,
        "head": neuron.head if isinstance(neuron, AttentionNeuron) else None,
        "expert": neuron.expert if isinstance(neuron, FfnNeuron) else None,
        "index": neuron.index,
        "position": score.position,
        "score": score.score,
        "coefficient": score.coefficient,
        "promoted_side": score.promoted_side.value,
        "top_tokens": _texts(projection.top),
        "bottom_tokens": _texts(projection.bottom),
    }


def _texts(tokens: Sequence[ProjectedToken]) -> list[str]:
    return [each.token.text for each in tokens]
