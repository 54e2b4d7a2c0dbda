"""Shards: consecutive prompts whose rows are written together, once all of them are there.

What a shard holds depends on the corpus alone, not on the order in which answers come. A shard is finished when its
part of `prompts` exists, which is written last; what was left behind without one is written over.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from neuron_attribution.analysis.atomic_files import PARTIAL
from neuron_attribution.analysis.rows import OK, ItemRows
from neuron_attribution.analysis.tables import SCHEMAS, Tables, write_partial
from neuron_attribution.errors import InternalError


class ShardStore:
    """The parts of every table, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in SCHEMAS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for left in folder.rglob(f"*{PARTIAL}"):
            left.unlink()

    def finished(self) -> list[int]:
        """The numbers of the shards that are there, in order."""
        return sorted(int(path.stem.removeprefix("part-")) for path in (self._folder / "prompts").glob("part-*"))

    def read(self, name: str, shard: int, columns: list[str] | None = None) -> pa.Table:
        """A part of a table."""
        return parquet.read_table(self._path(name, shard), columns=columns)

    def failed(self, shard: int) -> frozenset[int]:
        """The prompts of a finished shard that failed."""
        prompts = self.read("prompts", shard, ["prompt", "status"])
        return frozenset(prompts.filter(pc.field("status") != OK)["prompt"].to_pylist())

    def write(self, shard: int, tables: Tables) -> None:
        """Finish a shard. Where a disk is full, one that is written again stays what it was."""
        paths = {name: self._path(name, shard) for name in SCHEMAS}
        partial = {name: write_partial(tables[name], path) for name, path in paths.items()}
        # While a shard that is written again is not whole, it does not count as finished.
        paths["prompts"].unlink(missing_ok=True)
        for name, path in paths.items():
            partial[name].replace(path)

    def _path(self, name: str, shard: int) -> Path:
        return self._folder / name / f"part-{shard:06d}.parquet"


class Shards:
    """Gathers rows until a shard has all of its own."""

    def __init__(self, store: ShardStore, size: int, prompts: int, *, retry_failed: bool) -> None:
        self._store = store
        self._size = size
        self._prompts = prompts
        self._rows: dict[int, list[ItemRows]] = {}
        self._added = 0
        self._finished = frozenset(store.finished())
        self._retried = {shard: store.failed(shard) for shard in self._finished} if retry_failed else {}

    def wants(self, index: int) -> bool:
        """Whether a prompt's rows are missing."""
        shard = index // self._size
        return shard not in self._finished or index in self._retried.get(shard, ())

    def missing(self) -> int:
        """How many prompts are missing."""
        finished = sum(self._length(shard) - len(self._retried.get(shard, ())) for shard in self._finished)
        return self._prompts - finished

    def add(self, rows: ItemRows) -> None:
        """Take a prompt's rows; the last ones of a shard finish it."""
        shard = rows.index // self._size
        gathered = self._rows.setdefault(shard, [])
        gathered.append(rows)
        self._added += 1
        if len(gathered) == (len(self._retried[shard]) if shard in self._retried else self._length(shard)):
            self._store.write(shard, self._whole(shard, self._rows.pop(shard)))

    def check_complete(self) -> None:
        """Raise InternalError where a prompt has got no rows, so that no part of a corpus is taken for the whole."""
        missing = self.missing() - self._added
        if missing:
            raise InternalError(f"{missing} prompts were never answered; run the study again to go on")

    def _length(self, shard: int) -> int:
        return min(self._size, self._prompts - shard * self._size)

    def _whole(self, shard: int, gathered: list[ItemRows]) -> Tables:
        new = [rows.tables for rows in sorted(gathered, key=lambda rows: rows.index)]
        return {name: self._joined(shard, name, (tables[name] for tables in new)) for name in SCHEMAS}

    def _joined(self, shard: int, name: str, new: Iterable[pa.Table]) -> pa.Table:
        """The rows of all prompts in order: of those that were retried the new ones, of the others the old ones."""
        if shard not in self._retried:
            return pa.concat_tables(new).combine_chunks()
        again = pa.array(sorted(self._retried[shard]), pa.int64())
        kept = self._store.read(name, shard).filter(~pc.field("prompt").isin(again))
        joined = pa.concat_tables([kept.cast(SCHEMAS[name]), *new])
        # Sorting is stable: a prompt's rows keep their order.
        return joined.sort_by("prompt").combine_chunks()
