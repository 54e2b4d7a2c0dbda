"""A whole evaluation: several facts at a time, each written when it is done."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from neuron_attribution.analysis.atomic_files import held, read_object, write_text
from neuron_attribution.client import Client
from neuron_attribution.evaluation.facts import Fact, FactsError
from neuron_attribution.evaluation.protocol import Protocol
from neuron_attribution.evaluation.report import Report, markdown, report_of
from neuron_attribution.evaluation.rows import RowFile

SETTINGS = "settings.json"
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

    Raises FactsError where the folder holds results of another model, other facts or other settings, and
    FailedPreconditionError where another evaluation writes there.
    """
    with held(folder, "evaluation", SETTINGS):
        return _evaluate(client, facts, folder, limit, seed, progressed)


def _evaluate(
    client: Client,
    facts: Sequence[Fact],
    folder: Path,
    limit: int | None,
    seed: int,
    progressed: Callable[[], object],
) -> Report:
    info = client.get_model()
    chosen = chosen_facts(facts, limit, seed)
    words = _words(facts)
    model = {"model": info.model.name, "revision": info.model.revision, "dtype": info.model.dtype}
    settings = model | {"seed": seed, "words": _digest(words)}
    _check_settings(folder / SETTINGS, settings)
    file = RowFile(folder / "results.jsonl")
    protocol = Protocol(client, info, words, seed)
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
    return _written(folder, file, [fact.key for fact in chosen], settings)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    recorded = read_object(path) or settings
    differing = [name for name in sorted({*recorded, *settings}) if recorded.get(name) != settings.get(name)]
    if differing:
        raise FactsError(f"{path} tells of another evaluation: other {', '.join(differing)}; give another folder")
    if not path.exists():
        write_text(json.dumps(settings) + "\n", path)


def _words(facts: Sequence[Fact]) -> dict[str, frozenset[str]]:
    """The words of each type."""
    words: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        words[fact.type].add(fact.answer)
    return {kind: frozenset(found) for kind, found in words.items()}


def _digest(words: Mapping[str, frozenset[str]]) -> str:
    """What names the words of all types, on which it depends whether a fact is eligible."""
    text = json.dumps({kind: sorted(found) for kind, found in words.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _written(folder: Path, file: RowFile, keys: Sequence[str], settings: dict[str, Any]) -> Report:
    """The report of the facts in their own order: in which they were done, changes no interval."""
    rows = {row.key: row for row in file.rows}
    report = report_of([rows[key] for key in keys], settings)
    write_text(json.dumps(report, indent=1) + "\n", folder / "report.json")
    write_text(markdown(report), folder / "report.md")
    return report
