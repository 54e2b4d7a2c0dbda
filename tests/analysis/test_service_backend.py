"""A study and its backend: streams that break, models that change, what is missing."""

import fcntl
import subprocess
import sys
from dataclasses import replace

import pytest
from analysis.studies import corpus, served
from client.fake_service import ATTRIBUTION, IDENTITY
from neuron_attribution import Client
from neuron_attribution.analysis import service
from neuron_attribution.analysis.corpus import Corpus, CorpusItem
from neuron_attribution.analysis.rows import result_rows
from neuron_attribution.analysis.service import SPAN, Feed, ServiceBackend
from neuron_attribution.analysis.study import Study
from neuron_attribution.errors import FailedPreconditionError, InternalError, UnavailableError
from neuron_attribution.requests import AttributeOptions, AttributeRequest

PROMPTS = 40


def items(count=PROMPTS):
    return (CorpusItem(index, request=AttributeRequest(prompt=f"Fact {index}")) for index in range(count))


class BreakingClient(Client):
    """Its streams break after some answers, as a server's do that is replaced."""

    answers = 15
    streams = 0

    def attribute_stream(self, requests, **options):
        self.streams += 1
        for count, outcome in enumerate(super().attribute_stream(requests, **options)):
            if count == self.answers:
                raise UnavailableError("the server has gone")
            yield outcome


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(service, "_PAUSE", 0.01)
    with served() as address, BreakingClient(address) as client:
        yield client


def test_every_prompt_is_answered_once_though_the_stream_breaks(client):
    found = [rows.index for rows in ServiceBackend(client).explain(items())]
    assert sorted(found) == list(range(PROMPTS))
    assert client.streams == 3


def test_a_service_that_stays_away_ends_the_study(client):
    client.answers = 0
    with pytest.raises(UnavailableError, match="has gone"):
        list(ServiceBackend(client).explain(items()))
    assert client.streams == service.ATTEMPTS


def test_the_feed_waits_for_the_oldest_prompt():
    feed = Feed(items(3 * SPAN), SPAN)
    requests = feed.requests()
    taken = [int(next(requests)[0]) for _ in range(SPAN + 1)]
    for index in taken[1:]:
        feed.answered(index)
    feed.answered(0)
    assert int(next(requests)[0]) == SPAN + 1
    again = feed.requests()
    assert next(again)[0] == str(SPAN + 1), "what is unanswered comes first in the next stream"
    assert next(requests, None) is None, "the stream before has ended"


class Answers:
    """A backend that answers some of the prompts, each by a model of its own revision."""

    def __init__(self, *revisions):
        self.revisions = revisions

    def explain(self, items):
        for item, revision in zip(items, self.revisions, strict=False):
            yield result_rows(item, replace(ATTRIBUTION, model=replace(IDENTITY, revision=revision)))


@pytest.fixture
def study(tmp_path):
    prompts = corpus(tmp_path / "prompts.jsonl", prompts=3)
    return Study(corpus=Corpus(prompts, AttributeOptions()), folder=tmp_path / "study", shard_prompts=1)


def test_a_model_that_changes_meanwhile_ends_the_study(study):
    with pytest.raises(FailedPreconditionError, match="revision was 'a' and is 'b' now"):
        study.run(Answers("a", "a", "b"), None, {})
    assert len(list((study.folder / "prompts").iterdir())) == 2
    assert study.run(Answers("a"), None, {}) == 0


def test_part_of_a_corpus_is_never_taken_for_the_whole(study):
    with pytest.raises(InternalError, match="1 prompts were never answered"):
        study.run(Answers("a", "a"), None, {})
    assert not (study.folder / "summary.md").exists()


def test_two_studies_in_one_folder_are_refused(study):
    study.folder.mkdir()
    with (study.folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FailedPreconditionError, match="another study writes to"):
            study.run(Answers("a"), None, {})


def test_a_missing_extra_is_named(tmp_path):
    prompts = corpus(tmp_path / "prompts.jsonl", prompts=1)
    script = (
        "import sys; sys.modules[sys.argv[1]] = None; from neuron_attribution.cli.main import main; main(sys.argv[2:])"
    )
    words = ["analyze", str(prompts), "--output", str(tmp_path / "study")]
    for module, options, hint in (
        ("pyarrow", [], "analyze needs pyarrow, which is not installed: pip install 'neuron-attribution[analysis]'"),
        (
            "ray",
            ["--ray", "local", "--model", "demo"],
            "analyze needs ray, which is not installed: pip install 'neuron-attribution[ray]'",
        ),
    ):
        finished = subprocess.run(
            [sys.executable, "-c", script, module, *words, *options], capture_output=True, text=True, check=False
        )
        assert hint in finished.stderr
