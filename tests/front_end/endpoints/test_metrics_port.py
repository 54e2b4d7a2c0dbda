"""The metrics port: in every format, whatever the server does, and whoever leaves connections half used."""

import gzip
import resource
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import psutil
import pytest
from neuron_attribution_server.front_end.endpoints import metrics as metrics_endpoint
from neuron_attribution_server.front_end.endpoints.metrics import CONNECTIONS, MetricsEndpoint
from neuron_attribution_server.front_end.observability.metrics import Metrics
from service.hostile import half_sent, link, still_open
from service.scraping import OPENMETRICS, PREFIX, Scrape, free_address
from service.servers import PATIENCE, eventually, listening_address, server_process

pytestmark = pytest.mark.process

FLOOD = 4 * CONNECTIONS
FAMILY = PREFIX + "build_info"


@contextmanager
def scraped(**settings):
    """A server process, and where it serves its metrics."""
    address = free_address()
    with server_process(metrics_listen=address, **settings) as process:
        assert listening_address(process)
        yield address, psutil.Process(process.pid)


@pytest.fixture(scope="module")
def served():
    with scraped() as served:
        assert eventually(lambda: Scrape(served[0]).value("ready") == 1)
        yield served


def fetch(address, path="/metrics", **headers):
    """Headers and body of an answer."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{address}{path}", headers=fields)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.headers, answer.read()


@pytest.mark.parametrize("path", ["/metrics", "/"])
def test_both_paths_answer(served, path):
    headers, body = fetch(served[0], path)
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert f"# TYPE {FAMILY} gauge".encode() in body


def test_the_format_is_the_one_that_is_asked_for(served):
    headers, body = fetch(served[0], Accept=OPENMETRICS)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")


def test_answers_are_compressed_where_that_is_asked_for(served):
    headers, body = fetch(served[0], Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert FAMILY.encode() in gzip.decompress(body)
    assert "Content-Encoding" not in fetch(served[0])[0]


def test_families_can_be_asked_for_by_name(served):
    _, body = fetch(served[0], f"/metrics?name[]={FAMILY}")
    assert {line.split("{")[0] for line in body.decode().splitlines() if not line.startswith("#")} == {FAMILY}


@pytest.mark.parametrize(("path", "method", "status"), [("/else", "GET", 404), ("/metrics", "POST", 405)])
def test_nothing_else_is_there(served, path, method, status):
    request = urllib.request.Request(f"http://{served[0]}{path}", method=method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=PATIENCE)
    caught.value.close()
    assert caught.value.code == status
    assert caught.value.headers["Server"] == "neuron-attribution"


def test_half_sent_scrapes_keep_no_scrape_out_and_cost_few_descriptors(served):
    address, process = served
    descriptors, threads = process.num_fds(), process.num_threads()
    with half_sent(address, FLOOD) as links:
        assert Scrape(address).value("ready") == 1
        assert eventually(lambda: process.num_fds() <= descriptors + CONNECTIONS)
        assert process.num_threads() <= threads
        assert still_open(links) < CONNECTIONS


def test_scrapes_that_are_not_read_keep_no_scrape_out(served):
    address, process = served
    descriptors = process.num_fds()
    scrapes = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    with half_sent(address, FLOOD, scrapes):
        assert Scrape(address).value("ready") == 1
        assert eventually(lambda: process.num_fds() <= descriptors + CONNECTIONS)


def test_as_many_scrapes_as_connections_are_answered(served):
    with ThreadPoolExecutor(CONNECTIONS) as scrapers:
        scrapes = [scrapers.submit(Scrape, served[0]) for _ in range(CONNECTIONS)]
        assert {scrape.result().value("ready") for scrape in scrapes} == {1}


def test_without_descriptors_it_waits_and_goes_on(served):
    """Accepting fails again and again meanwhile, which must cost no time of the processor."""
    address, process = served
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds(), limits[1]))
        try:
            links = [stack.enter_context(link(address)) for _ in range(8)]
            used = sum(process.cpu_times()[:2])
            time.sleep(2)
            assert sum(process.cpu_times()[:2]) - used < 1
        finally:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        for each in links:
            each.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert each.recv(15).startswith(b"HTTP/1.0 200"), "those that waited are served"
    assert Scrape(address).value("ready") == 1


PATIENCE_OF_THE_SERVER = """
from neuron_attribution_server.front_end.http import connection as http_connection
http_connection.HEADER_SECONDS = 1.0
"""


def test_headers_that_do_not_come_are_not_waited_for():
    with scraped(before=PATIENCE_OF_THE_SERVER) as (address, _), half_sent(address, 3) as links:
        assert eventually(lambda: still_open(links) == 0)
        assert Scrape(address).text


def test_it_answers_whatever_the_servers_event_loop_does():
    """There is none here."""
    with closing(MetricsEndpoint(Metrics().registry, "localhost:0")) as endpoint:
        assert FAMILY in Scrape(endpoint.address).text


def test_the_limit_of_connections_is_told_once(caplog):
    with closing(MetricsEndpoint(Metrics().registry, "localhost:0")) as endpoint, half_sent(endpoint.address, FLOOD):
        assert FAMILY in Scrape(endpoint.address).text
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"the metrics port has {CONNECTIONS} connections and takes no more"]


def test_an_address_that_cannot_be_had_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="Address already in use"):
        MetricsEndpoint(Metrics().registry, f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(OSError, match=r".+"):
        MetricsEndpoint(Metrics().registry, "host.invalid:0")


def test_a_scrape_that_fails_is_told_and_the_next_is_answered(monkeypatch, caplog):
    def fail(_):
        raise ValueError("a secret")

    with closing(MetricsEndpoint(Metrics().registry, "localhost:0")) as endpoint:
        with monkeypatch.context() as context:
            context.setattr(metrics_endpoint, "choose_encoder", fail)
            with pytest.raises(urllib.error.HTTPError, match="500") as caught:
                fetch(endpoint.address)
            caught.value.close()
        assert FAMILY in Scrape(endpoint.address).text
    assert "a connection of the metrics port ended by ValueError" in caplog.text
    assert "a secret" not in caplog.text
