"""A real Prometheus that scrapes and evaluates every second."""

import json
import signal
import subprocess
import time
from contextlib import contextmanager
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml
from service.scraping import free_address

JOB = "neuron-attribution"
PATIENCE = 60
_SECOND = "1s"
_WAIT = "5s"
"""Longer than a crowded machine makes a server miss its scrapes."""


class Prometheus:
    """What a running Prometheus knows."""

    def __init__(self, process, address, configuration):
        self.process, self._address, self._configuration = process, address, configuration

    def ask(self, path, **parameters):
        """The data of an API call. Raises HTTPError where Prometheus refuses it."""
        with urlopen(f"http://{self._address}/api/v1/{path}?{urlencode(parameters)}", timeout=PATIENCE) as response:
            return json.load(response)["data"]

    def query(self, expression):
        """The samples of an expression now: pairs of labels and value."""
        result = self.ask("query", query=expression)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    def firing(self):
        """Pairs of namespace and alert that fire now."""
        alerts = self.ask("alerts")["alerts"]
        return {
            (alert["labels"].get("namespace"), alert["labels"]["alertname"])
            for alert in alerts
            if alert["state"] == "firing"
        }

    def scrape(self, targets):
        """Scrape other targets from now on: addresses by namespace."""
        self._configuration.write_text(yaml.safe_dump(_configuration(targets)))
        self.process.send_signal(signal.SIGHUP)


@contextmanager
def running_prometheus(folder, rules, targets):
    """A Prometheus with these rules, their waits shortened, over targets: addresses by namespace."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(impatient(rules)))
    configuration = folder / "prometheus.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(targets)))
    address = free_address()
    options = {
        "config.file": configuration,
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
        "log.level": "warn",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    with subprocess.Popen(command) as process:
        try:
            prometheus = Prometheus(process, address, configuration)
            _until_it_answers(prometheus)
            yield prometheus
        finally:
            process.terminate()


def impatient(rules):
    """The rules, evaluated each second, with shorter waits. Windows stay: rates take what there is of them."""
    return {
        "groups": [
            {
                **group,
                "interval": _SECOND,
                "rules": [{**rule, "for": _WAIT} if "for" in rule else rule for rule in group["rules"]],
            }
            for group in rules["groups"]
        ]
    }


def _configuration(targets):
    servers = [{"targets": [address], "labels": {"namespace": namespace}} for namespace, address in targets.items()]
    return {
        "global": {"scrape_interval": _SECOND, "scrape_timeout": _SECOND, "evaluation_interval": _SECOND},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": JOB, "static_configs": servers or [{"targets": []}]}],
    }


def _until_it_answers(prometheus):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            prometheus.ask("status/buildinfo")
        except URLError:
            assert prometheus.process.poll() is None, "Prometheus ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)  # it says nowhere that it listens
        else:
            return
