"""Metrics as Prometheus fetches them."""

import random
import socket
import urllib.request
from contextlib import suppress

from prometheus_client.parser import text_string_to_metric_families
from service.servers import PATIENCE, eventually

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PREFIX = "neuron_attribution_"


class Scrape:
    """One answer of a metrics endpoint."""

    def __init__(self, address, accept="text/plain"):
        request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            self.text = response.read().decode()

    @property
    def families(self):
        return {family.name: family for family in text_string_to_metric_families(self.text)}

    @property
    def series(self):
        """The value of each series, by name and labels."""
        samples = (sample for family in self.families.values() for sample in family.samples)
        return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}

    def value(self, name, **labels):
        """The value of one series; None where there is none. Names may lack our prefix."""
        key = tuple(sorted(labels.items()))
        series = self.series
        return series.get((name, *key), series.get((PREFIX + name, *key)))


class Watched:
    """What has been added to a server's metrics since this was made."""

    def __init__(self, address):
        self.address = address
        self._before = Scrape(address)

    def __call__(self, name, **labels):
        now = Scrape(self.address).value(name, **labels)
        return now - (self._before.value(name, **labels) or 0)

    def reaches(self, value, name, **labels):
        """Whether so much comes to be added: a refused caller may know before the server has counted it."""
        return eventually(lambda: self(name, **labels) == value)


RANDOM = random.SystemRandom()
"""Not seeded: tests that run side by side choose ports of their own."""


def free_address():
    """An address on which nothing listens just now; below the ports that are given to whoever asks for any."""
    while True:
        port = RANDOM.randrange(15_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"
