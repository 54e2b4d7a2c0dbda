"""The stream to the service: opened again when it breaks, and never far ahead of what is unanswered."""

import pytest
from analysis.studies import served
from neuron_attribution import Client
from neuron_attribution.analysis import service
from neuron_attribution.analysis.corpus import CorpusItem
from neuron_attribution.analysis.service import SPAN, Feed, ServiceBackend
from neuron_attribution.errors import UnavailableError
from neuron_attribution.requests import AttributeRequest

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
