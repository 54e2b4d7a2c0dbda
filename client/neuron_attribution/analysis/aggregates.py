"""What the explained predictions of a corpus have in common.

Shards are added up in the order of the corpus, a bounded number of rows at a time, so that the same shards give the
same bytes. Wherever `type` is null in a table of layers or heads, the row is of the whole corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from neuron_attribution.analysis.layer_aggregates import ExplanationSums
from neuron_attribution.analysis.neuron_sums import NEURON, NeuronSums
from neuron_attribution.analysis.rows import OK
from neuron_attribution.analysis.shards import ShardStore
from neuron_attribution.analysis.tables import write_table

FOLDER = "aggregates"
TYPES_COMPARED = 100
"""Types whose neurons are compared with each other: those with the most prompts."""

Aggregates = dict[str, pa.Table]


def aggregate(store: ShardStore, top_k: int) -> Aggregates:
    """Add up all finished shards; `top_k` is how many neurons of a type are compared with another type's."""
    counts: Counter[str | None] = Counter()
    statuses: Counter[str] = Counter()
    neurons, explanations = NeuronSums(), ExplanationSums()
    for shard in store.finished():
        prompts = store.read("prompts", shard, ["status", "type"])
        statuses.update(prompts["status"].to_pylist())
        counts.update(prompts.filter(pc.field("status") == OK)["type"].to_pylist())
        neurons.add(store.read("neurons", shard))
        explanations.add(store.read("explanations", shard))
    by_type = _typed(neurons.by_type(), counts)
    return {
        "statuses": _statuses(statuses),
        "neurons": _whole_corpus(neurons.overall(), counts.total()),
        "neurons_by_type": by_type,
        "shared_neurons": _shared(by_type, counts, top_k),
        "layers": explanations.layers(),
        "layer_neurons": neurons.layers(explanations.counts),
        "heads": explanations.heads(),
    }


def write_aggregates(aggregates: Aggregates, folder: Path) -> None:
    """Write each as a Parquet file."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for name, table in aggregates.items():
        write_table(table, folder / FOLDER / f"{name}.parquet")


def _statuses(statuses: Counter[str]) -> pa.Table:
    names = sorted(statuses)
    return pa.table({"status": names, "prompts": [statuses[name] for name in names]})


def _whole_corpus(sums: pa.Table, prompts: int) -> pa.Table:
    return _measures(sums, pa.array([prompts] * len(sums), pa.int64())).sort_by(
        [("kind", "ascending"), ("direction", "ascending"), ("prompts", "descending"), *_NEURON_ORDER]
    )


def _typed(sums: pa.Table, counts: Counter[str | None]) -> pa.Table:
    totals = pa.array([counts[name] for name in sums["type"].to_pylist()], pa.int64())
    order = [("type", "ascending"), ("kind", "ascending"), ("direction", "ascending"), ("prompts", "descending")]
    return _measures(sums, totals).sort_by([*order, *_NEURON_ORDER])


_NEURON_ORDER = [("mean_score", "descending"), *((name, "ascending") for name in NEURON)]


def _measures(sums: pa.Table, totals: pa.Array) -> pa.Table:
    """Shares and means. `score_per_prompt` counts a prompt in whose ranking a neuron is not as zero."""
    as_float = totals.cast(pa.float64())
    columns = {
        "share": pc.divide(sums["prompts"].cast(pa.float64()), as_float),
        "mean_score": pc.divide(sums["score_sum"], sums["rows"].cast(pa.float64())),
        "score_per_prompt": pc.divide(sums["score_sum"], as_float),
        "mean_rank": pc.divide(sums["rank_sum"].cast(pa.float64()), sums["rows"].cast(pa.float64())),
        "promotes_top_share": pc.divide(sums["promotes_top"].cast(pa.float64()), sums["rows"].cast(pa.float64())),
    }
    for name, column in columns.items():
        sums = sums.append_column(name, column)
    return sums.drop_columns(["score_sum", "rank_sum", "promotes_top"])


def _shared(by_type: pa.Table, counts: Counter[str | None], top_k: int) -> pa.Table:
    """How many of the strongest neurons of one type are among those of another."""
    common = sorted((name for name in counts if name is not None), key=lambda name: (-counts[name], name))
    strongest = {name: _strongest(by_type, name, top_k) for name in sorted(common[:TYPES_COMPARED])}
    rows = [row for pair in combinations(strongest, 2) for row in _overlaps(*pair, strongest)]
    return pa.Table.from_pylist(rows, schema=_SHARED)


_SHARED = pa.schema(
    {
        "kind": pa.string(),
        "direction": pa.string(),
        "type_a": pa.string(),
        "type_b": pa.string(),
        "neurons_a": pa.int64(),
        "neurons_b": pa.int64(),
        "shared": pa.int64(),
        "share": pa.float64(),
    }
)

_Ranking = tuple[str, str]
_Neurons = dict[_Ranking, frozenset[tuple[int | None, ...]]]


def _strongest(by_type: pa.Table, name: str, top_k: int) -> _Neurons:
    """A type's neurons of each ranking with the largest score for each prompt, in amount."""
    rows = by_type.filter(pc.field("type") == name)
    found: _Neurons = {}
    for kind, direction in sorted(set(zip(rows["kind"].to_pylist(), rows["direction"].to_pylist(), strict=True))):
        ranked = rows.filter((pc.field("kind") == kind) & (pc.field("direction") == direction))
        ranked = ranked.append_column("amount", pc.abs(ranked["score_per_prompt"]))
        first = ranked.sort_by([("amount", "descending"), *((each, "ascending") for each in NEURON)]).slice(0, top_k)
        found[kind, direction] = frozenset(zip(*(first[each].to_pylist() for each in NEURON), strict=True))
    return found


def _overlaps(first: str, second: str, strongest: dict[str, _Neurons]) -> Iterator[dict[str, object]]:
    for ranking in sorted(strongest[first].keys() & strongest[second].keys()):
        a, b = strongest[first][ranking], strongest[second][ranking]
        yield {
            "kind": ranking[0],
            "direction": ranking[1],
            "type_a": first,
            "type_b": second,
            "neurons_a": len(a),
            "neurons_b": len(b),
            "shared": len(a & b),
            "share": len(a & b) / min(len(a), len(b)),
        }
