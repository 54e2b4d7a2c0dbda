"""Every series that rules, dashboard and runbooks select is one that a real server exposes."""

import re
from collections import defaultdict

import pytest
from alerts.documents import ALERTS, PANELS, RECORDS, RUNBOOKS, queries, selectors
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.live_metrics import LiveMetrics
from neuron_attribution_server.settings.config import ServerConfig
from service.certificates import Authority
from service.fakes import FakeEngine
from service.scraping import Scrape, free_address
from service.servers import listening_address, server_process

OF_PROMETHEUS = {"up", "ALERTS"}
LABELS_OF_TARGETS = {"job", "instance"}
EXPRESSIONS = {
    **RECORDS,
    **{name: rule["expr"] for name, rule in ALERTS.items()},
    **{
        f"{page.stem} {number}": query
        for page in RUNBOOKS.glob("*.md")
        for number, query in enumerate(re.findall("^ {6}(.+)", page.read_text(), re.MULTILINE))
    },
    **{f"{panel['title']} {number}": query for panel in PANELS for number, query in enumerate(queries(panel))},
}


GPU_MEMORY = "neuron_attribution_gpu_memory_bytes"


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """The labels of every series, by name, of a server process that uses all it can."""
    pair = Authority(tmp_path_factory.mktemp("tls")).issue("server")
    settings = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key), "metrics_listen": free_address()}
    with server_process(**settings) as process:
        listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        series = Scrape(settings["metrics_listen"]).series
    found = defaultdict(list)
    for name, *labels in series:
        found[name].append(dict(labels))
    return found


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_every_series_that_is_selected_exists(exposed, title):
    for name, labels in selectors(EXPRESSIONS[title]):
        if name in OF_PROMETHEUS | RECORDS.keys():
            continue
        wanted = {label: value for label, value in labels.items() if label not in LABELS_OF_TARGETS}
        assert name == GPU_MEMORY or any(matches(each, wanted) for each in exposed[name]), f"{name}{wanted}"


def test_the_name_that_needs_a_gpu_is_one_that_the_server_knows():
    described = LiveMetrics(ServerConfig(model="fake"), ThreadWorker(FakeEngine()), {}, None, {}).describe()
    assert GPU_MEMORY in {family.name for family in described}


def matches(labels, wanted):
    return all(re.fullmatch(value, labels.get(label, "")) for label, value in wanted.items())
