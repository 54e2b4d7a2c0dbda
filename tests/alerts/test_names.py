"""Every series that rules and dashboard select is one that a real server exposes."""

import re
from urllib.request import urlopen

import pytest
from alerts.documents import ALERTS, PANELS, RECORDS, queries, selectors
from alerts.prometheus import free_address
from neuron_attribution_server.thread_worker import ThreadWorker
from prometheus_client.parser import text_string_to_metric_families
from service.certificates import Authority
from service.fakes import FakeEngine
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
    metrics = free_address()
    with running_server(ThreadWorker(FakeEngine()), metrics_listen=metrics, **settings) as server:
        assert server.loaded.wait(30)
        with urlopen(f"http://{metrics}/metrics", timeout=30) as response:
            text = response.read().decode()
    found = {name: [] for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
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
