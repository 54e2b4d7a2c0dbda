"""`make audit` passes where everything pinned was looked up and nothing is vulnerable, and fails otherwise.

The advisories are those of a local server, which answers as osv.dev does.
"""

import json
import os
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from checkout import BIN, PINS, ROOT, attempt

ADVISORY = {"id": "PYSEC-0", "summary": "a hole", "affected": [{"package": {"name": "urllib3", "ecosystem": "PyPI"}}]}
NOWHERE = "http://127.0.0.1:9"


class Advisories(BaseHTTPRequestHandler):
    """Answers a query for one version of one package."""

    def do_POST(self):
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        self.server.asked.add(name)
        answer = json.dumps({"vulns": [ADVISORY]} if name == self.server.vulnerable else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def advisories(vulnerable=None):
    with ThreadingHTTPServer(("localhost", 0), Advisories) as server:
        server.asked, server.vulnerable = set(), vulnerable
        Thread(target=server.serve_forever).start()
        try:
            yield server
        finally:
            server.shutdown()


def audit(folder, *options, **variables):
    # -o: the tools are there.
    command = ["make", "audit", f"BIN={BIN}", "PYTHON=false", "-o", ".venv/release-installed"]
    options = " ".join(["--cache-dir", str(folder), *options])
    return attempt(*command, f"AUDIT={options}", cwd=ROOT, env=os.environ | variables)


def asking(server):
    return "--vulnerability-service", "osv", "--osv-url", f"http://localhost:{server.server_port}"


def test_everything_pinned_is_looked_up(tmp_path):
    with advisories() as server:
        finished = audit(tmp_path, *asking(server))
    assert finished.returncode == 0, finished.stderr
    assert server.asked == set(PINS)


def test_a_known_vulnerability_is_named(tmp_path):
    with advisories(vulnerable="urllib3") as server:
        finished = audit(tmp_path, *asking(server))
    assert finished.returncode != 0
    assert "PYSEC-0" in finished.stdout


@pytest.mark.parametrize("service", ["pypi", "osv"])
def test_no_answer_is_no_success(tmp_path, service):
    finished = audit(tmp_path, "--vulnerability-service", service, HTTPS_PROXY=NOWHERE, NO_PROXY="")
    assert finished.returncode != 0
    assert "No known vulnerabilities" not in finished.stdout + finished.stderr
