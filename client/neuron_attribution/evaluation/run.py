"""A whole evaluation: several facts at a time, each written when it is done."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from neuron_attribution.client import Client
from neuron_attribution.evaluation.facts import Fact, FactsError
from neuron_attribution.evaluation.protocol import Protocol
from neuron_attribution.evaluation.report import Report, markdown, report_of
from neuron_attribution.evaluation.rows import RowFile

AT_ONCE = 4
"""Facts that are asked about at the same time, so that the service can batch them."""


def chosen_facts(facts: Sequence[Fact], limit: int | None, seed: int) -> list[Fact]:
    """All facts, or a sample of them; a larger sample of the same seed contains a smaller one."""
    return list(facts) if limit is None else random.Random(seed).sample(list(facts), len(facts))[:limit]


def evaluate(
    client: Client,
    facts: Sequence[Fact],
    folder: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    progressed: Callable[[], object] = lambda: None,
) -> Report:
    """Evaluate what is not in the folder yet, and write the report of all of it there.

    Raises FactsError where the folder holds results of another model, other facts or other settings.
    """
    info = client.get_model()
    chosen = chosen_facts(facts, limit, seed)
    settings = {"model": info.model.name, "revision": info.model.revision, "dtype": info.model.dtype, "seed": seed}
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", settings)
    file = RowFile(folder / "results.jsonl")
    protocol = Protocol(client, info.sizes, _words(facts), seed)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        waiting = []
        for fact in chosen:
            if file.is_done(fact.key):
                progressed()
            else:
                waiting.append(threads.submit(protocol.evaluate, fact))
        try:
            for done in as_completed(waiting):
                file.add(done.result())
                progressed()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            client.close()  # ends the calls that are under way: a fact takes many
            raise
    return _written(folder, file, {fact.key for fact in chosen}, settings)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if path.exists() and json.loads(path.read_text()) != settings:
        raise FactsError(f"{path} tells of another evaluation: {path.read_text().strip()}; give another folder")
    path.write_text(json.dumps(settings) + "\n")


def _words(facts: Sequence[Fact]) -> dict[str, frozenset[str]]:
    """The words of each type."""
    words: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        words[fact.type].add(fact.answer)
    return {kind: frozenset(found) for kind, found in words.items()}


def _written(folder: Path, file: RowFile, keys: set[str], settings: dict[str, Any]) -> Report:
    report = report_of([row for row in file.rows if row.key in keys], settings)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    return report
