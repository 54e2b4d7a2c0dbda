"""Sums over the neurons of all rankings, by neuron and type, while shards go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from neuron_attribution.results import PromotedSide

RANKING = ("kind", "direction")
NEURON = ("layer", "head", "expert", "index")
"""What names a neuron within its kind."""

_COUNTED = ("prompts", "rows", "score_sum", "rank_sum", "promotes_top")
_TOKENS = ("top_tokens", "bottom_tokens")
_ROWS_KEPT = 1 << 20
"""Rows of partial sums that are kept before they are added up."""


class NeuronSums:
    """Sums by type, ranking and neuron. Memory grows with the neurons and types there are, not with the corpus."""

    def __init__(self) -> None:
        self._partial: list[pa.Table] = []

    def add(self, neurons: pa.Table) -> None:
        """Add a shard. No prompt is in two shards, so its distinct prompts add up."""
        ones = pa.array([1] * len(neurons), pa.int64())
        promotes = pc.equal(neurons["promoted_side"], PromotedSide.TOP.value).cast(pa.int64())
        rows = neurons.append_column("rows", ones).append_column("promotes_top", promotes)
        rows = rows.append_column("score_sum", neurons["score"].cast(pa.float64()))
        rows = rows.append_column("rank_sum", neurons["rank"].cast(pa.int64()))
        self._partial.append(_grouped(rows, ("type", *RANKING, *NEURON), distinct="prompt"))
        if sum(map(len, self._partial)) > _ROWS_KEPT:
            self._partial = [self._sums(("type", *RANKING, *NEURON))]

    def by_type(self) -> pa.Table:
        """The sums of the prompts that have a type."""
        sums = self._sums(("type", *RANKING, *NEURON))
        return sums.filter(pc.is_valid(sums["type"]))

    def overall(self) -> pa.Table:
        """The sums over all prompts, and the number of types a neuron was found for."""
        sums = self._sums(("type", *RANKING, *NEURON))
        types = sums.group_by([*RANKING, *NEURON], use_threads=False).aggregate([("type", "count")])
        whole = _grouped(sums, (*RANKING, *NEURON))  # groups stand where they first occur: in both in the same order
        return whole.append_column("types", types["type_count"])

    def layers(self, explained: Mapping[str | None, int]) -> pa.Table:
        """How many neurons of each ranking lie in each layer, and their scores, for each explained token."""
        sums = self._sums(("type", *RANKING, "layer"))
        typed = sums.filter(pc.is_valid(sums["type"]))
        nobody = pa.nulls(0, pa.string())
        whole = _grouped(sums, (*RANKING, "layer"))
        whole = whole.add_column(0, "type", pa.nulls(len(whole), pa.string()) if len(whole) else nobody)
        both = pa.concat_tables([whole.select(typed.column_names), typed])
        tokens = pa.array([explained[name] for name in both["type"].to_pylist()], pa.float64())
        both = both.append_column("neurons_per_token", pc.divide(both["rows"].cast(pa.float64()), tokens))
        both = both.append_column("score_per_token", pc.divide(both["score_sum"], tokens))
        order = [(name, "ascending") for name in ("type", *RANKING, "layer")]
        return both.select(["type", *RANKING, "layer", "neurons_per_token", "score_per_token"]).sort_by(order)

    def _sums(self, keys: Sequence[str]) -> pa.Table:
        return _grouped(pa.concat_tables(self._partial), keys)


def _grouped(rows: pa.Table, keys: Sequence[str], distinct: str | None = None) -> pa.Table:
    """The sums of each group, with the tokens of its first row. One thread, so that sums are added in order."""
    numbered = rows.append_column("first", pa.array(range(len(rows)), pa.int64()))
    counted = [name for name in _COUNTED if name != "prompts" or distinct is None]
    wanted = [*((name, "sum") for name in counted), ("first", "min")]
    if distinct is not None:
        wanted.append((distinct, "count_distinct"))
    found = numbered.group_by(list(keys), use_threads=False).aggregate(wanted)
    prompts = found["prompts_sum" if distinct is None else f"{distinct}_count_distinct"]
    sums = {name: prompts if name == "prompts" else found[f"{name}_sum"] for name in _COUNTED}
    tokens = {name: rows[name].take(found["first_min"]) for name in _TOKENS}
    return pa.table({name: found[name] for name in keys} | sums | tokens)
