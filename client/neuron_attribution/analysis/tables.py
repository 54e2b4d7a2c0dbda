"""The tables of a data set: their columns, and how they are written so that the same rows are the same bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from neuron_attribution.analysis.atomic_files import PARTIAL, sync

TOKENS = pa.list_(pa.string())
SCORES = pa.list_(pa.float32())
HEAD = pa.struct({"layer": pa.int32(), "head": pa.int32(), "score": pa.float32()})

PROMPTS = pa.schema(
    {
        "prompt": pa.int64(),
        "id": pa.string(),
        "type": pa.string(),
        "answer": pa.string(),
        "text": pa.string(),
        "status": pa.string(),
        "message": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "tokens": TOKENS,
        "explained": pa.int32(),
        "model": pa.string(),
        "revision": pa.string(),
        "dtype": pa.string(),
    }
)
"""One row for each prompt. `status` is ok, or the stable reason of the error that `message` tells."""

EXPLANATIONS = pa.schema(
    {
        "prompt": pa.int64(),
        "explained": pa.int32(),
        "type": pa.string(),
        "position": pa.int32(),
        "target_id": pa.int32(),
        "target": pa.string(),
        "probability": pa.float32(),
        "log_probability": pa.float32(),
        "rank": pa.int32(),
        "contrast": pa.string(),
        "own_prediction": pa.string(),
        "embedding_log_probability": pa.float32(),
        "final_log_probability": pa.float32(),
        "remainder": pa.float32(),
        "attention_scores": SCORES,
        "ffn_scores": SCORES,
        "head_scores": pa.list_(SCORES),
        "heads": pa.list_(HEAD),
        "ffn_neurons": pa.int64(),
        "ffn_bounded": pa.int64(),
        "ffn_scored": pa.int64(),
        "ffn_exact": pa.bool_(),
        "attention_neurons": pa.int64(),
        "attention_bounded": pa.int64(),
        "attention_scored": pa.int64(),
        "attention_exact": pa.bool_(),
    }
)
"""One row for each explained token; the lists of scores have one number for each layer, `head_scores` one for each
head of each layer."""

NEURONS = pa.schema(
    {
        "prompt": pa.int64(),
        "explained": pa.int32(),
        "type": pa.string(),
        "kind": pa.string(),
        "direction": pa.string(),
        "rank": pa.int32(),
        "layer": pa.int32(),
        "head": pa.int32(),
        "expert": pa.int32(),
        "index": pa.int32(),
        "position": pa.int32(),
        "score": pa.float32(),
        "coefficient": pa.float32(),
        "promoted_side": pa.string(),
        "top_tokens": TOKENS,
        "bottom_tokens": TOKENS,
    }
)
"""One row for each neuron of each ranking. `kind` is ffn, attention or query, `position` the source position."""

TIMINGS = pa.schema(
    {
        "prompt": pa.int64(),
        "queue": pa.float64(),
        "tokenization": pa.float64(),
        "forward": pa.float64(),
        "scoring": pa.float64(),
        "batch_requests": pa.int32(),
        "batch_tokens": pa.int32(),
        "cached": pa.bool_(),
    }
)
"""Where the time went, in seconds: the one table that differs between two runs of the same study."""

SCHEMAS: dict[str, pa.Schema] = {
    "neurons": NEURONS,
    "explanations": EXPLANATIONS,
    "timings": TIMINGS,
    "prompts": PROMPTS,
}
"""By name, in the order a shard is written: whoever has its prompts has the rest of it."""

Tables = dict[str, pa.Table]
"""Rows of every table."""


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is there in whole or not at all, whenever the process or the machine ends."""
    write_partial(table, path).replace(path)


def write_partial(table: pa.Table, path: Path) -> Path:
    """Write it under the name that it has until it is given its own; return that."""
    partial = path.with_name(path.name + PARTIAL)
    parquet.write_table(table, partial, compression="zstd")
    sync(partial)
    return partial
