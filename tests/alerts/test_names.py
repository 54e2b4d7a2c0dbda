"""Every series that rules and dashboard select is one that a real server exposes."""

import re

import pytest
from alerts.documents import ALERTS, PANELS, RECORDS, queries, selectors
from neuron_attribution_server.thread_worker import ThreadWorker
from service.certificates import Authority
from service.fakes import FakeEngine
from service.scraping import Scrape
from service.servers import running_server

OF_PROMETHEUS = {"up", "ALERTS"}
LABELS_OF_TARGETS = {"job", "instance"}
EXPRESSIONS = {
    **RECORDS,
    **{name: rule["expr"] for name, rule in ALERTS.items()},
    **{f"{panel['title']} {number}": query for panel in PANELS for number, query in enumerate(queries(panel))},
}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """The labels of every series, by name, of a server that uses all it can; a family without series has none."""
    pair = Authority(tmp_path_factory.mktemp("tls")).issue("server")
    settings = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    with running_server(ThreadWorker(FakeEngine()), metrics_listen="127.0.0.1:0", **settings) as server:
        assert server.loaded.wait(30)
        scrape = Scrape(server.metrics_address)
    found = {name: [] for name in re.findall(r"^# TYPE (\S+)", scrape.text, re.MULTILINE)}
    for name, *labels in scrape.series:
        found.setdefault(name, []).append(dict(labels))
    return found


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_every_series_that_is_selected_exists(exposed, title):
    for name, labels in selectors(EXPRESSIONS[title]):
        if name in OF_PROMETHEUS | RECORDS.keys():
            continue
        wanted = {label: value for label, value in labels.items() if label not in LABELS_OF_TARGETS}
        series = exposed[name]
        assert not series or any(matches(each, wanted) for each in series), f"{name}{wanted}"


def matches(labels, wanted):
    return all(re.fullmatch(value, labels.get(label, "")) for label, value in wanted.items())
