"""The study of a corpus: what is missing is explained and written, then everything is added up.

    FOLDER/conditions.json                 corpus, options, model, software
    FOLDER/prompts/part-….parquet          and explanations, neurons, timings: see tables
    FOLDER/aggregates/….parquet            what the explanations have in common
    FOLDER/summary.md                      the same, to read

A study that was stopped goes on where it was. Two at once in one folder are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from neuron_attribution.analysis.aggregates import aggregate, write_aggregates
from neuron_attribution.analysis.atomic_files import held, write_text
from neuron_attribution.analysis.conditions import NAME as CONDITIONS
from neuron_attribution.analysis.conditions import Conditions
from neuron_attribution.analysis.corpus import Corpus, CorpusItem
from neuron_attribution.analysis.rows import OK, ItemRows
from neuron_attribution.analysis.shards import Shards, ShardStore
from neuron_attribution.analysis.summary import summary
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.results import ModelIdentity

SHARD_PROMPTS = 32
_SUMMARY = "summary.md"


class Backend(Protocol):
    """What explains prompts."""

    def explain(self, items: Iterator[CorpusItem]) -> Iterator[ItemRows]:
        """The rows of each prompt, in any order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A corpus and the folder of its data set."""

    corpus: Corpus
    folder: Path
    shard_prompts: int = SHARD_PROMPTS
    retry_failed: bool = False

    def run(self, backend: Backend, model: ModelIdentity | None, software: dict[str, Any]) -> int:
        """Explain what is missing and add everything up; return how many prompts have failed, in this run or before.

        `model` is the one that will answer, where that is known. Raises FailedPreconditionError for a folder that was
        begun under other conditions, and what the backend raises; the study goes on with the next run.
        """
        with held(self.folder, "study", CONDITIONS):
            conditions = self._conditions(model, software)
            store = ShardStore(self.folder)
            prompts = conditions.facts["corpus"]["prompts"]
            shards = Shards(store, self.shard_prompts, prompts, retry_failed=self.retry_failed)
            missing = (item for item in self.corpus if shards.wants(item.index))
            with tqdm(total=prompts, initial=prompts - shards.missing(), unit=" prompts", **_to_a_log()) as progress:
                self._explain(backend.explain(missing) if shards.missing() else iter(()), shards, conditions, progress)
            return self._finish(store, conditions)

    def _conditions(self, model: ModelIdentity | None, software: dict[str, Any]) -> Conditions:
        prompts = self.corpus.count()
        if not prompts:
            raise InvalidArgumentError.of("PROMPTS", f"{self.corpus.path} holds no prompt")
        conditions = Conditions(self.folder, self.corpus, prompts, self.shard_prompts, software)
        if model is not None:
            conditions.check_model(model)
        conditions.write()
        return conditions

    def _explain(self, found: Iterator[ItemRows], shards: Shards, conditions: Conditions, progress: tqdm[Any]) -> None:
        failed = 0
        for rows in found:
            if rows.model is not None:
                conditions.check_model(rows.model)
            failed += rows.failed
            shards.add(rows)
            progress.set_postfix(failed=failed, refresh=False)
            progress.update()
        shards.check_complete()

    def _finish(self, store: ShardStore, conditions: Conditions) -> int:
        aggregates = aggregate(store, self.corpus.options.top_k)
        write_aggregates(aggregates, self.folder)
        write_text(summary(aggregates, conditions.facts), self.folder / _SUMMARY)
        statuses = aggregates["statuses"].to_pylist()
        return sum(row["prompts"] for row in statuses if row["status"] != OK)


def _to_a_log() -> dict[str, Any]:
    """A line now and then where nobody watches."""
    return {} if sys.stderr.isatty() else {"mininterval": 10.0, "ascii": True, "ncols": 100}
