"""The web page begins and ends with its server."""

import asyncio
import json
import os
import subprocess
import sys

import pytest
from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.settings.config import ServerConfig
from service.browsing import ASKED, connection, served
from service.certificates import Authority
from service.fakes import FakeEngine
from service.scraping import Scrape, free_address
from service.servers import PATIENCE, eventually, listening_address, server_process

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server():
    with served() as server:
        yield server


def test_a_stopping_server_answers_what_it_has_taken(monkeypatch, tmp_path):
    web, metrics = free_address(), free_address()
    monkeypatch.setenv("GATED_ENGINE", str(tmp_path))
    (tmp_path / "open").touch()
    settings = {"web": web, "metrics_listen": metrics, "cache_bytes": 0, "grace": 60.0}
    with server_process("make_gated_engine", module="faulty_engines", **settings) as process:
        assert listening_address(process)
        assert process.stdout.readline().startswith("ready")
        (tmp_path / "open").unlink()
        link = connection(web)
        link.request("POST", "/v1/attribute", json.dumps(ASKED), {"Content-Type": "application/json"})
        rpc = {"grpc_method": "Attribute", "grpc_service": "neuron_attribution.v1.NeuronAttributionService"}
        count = lambda: Scrape(metrics).value("grpc_server_started_total", grpc_type="unary", **rpc)  # noqa: E731
        assert eventually(lambda: count() == 1)
        process.terminate()
        assert eventually(lambda: Scrape(metrics).value("draining") == 1)
        (tmp_path / "open").touch()
        answer = link.getresponse()
        assert json.loads(answer.read())["explanations"]
        link.close()
        assert process.wait(PATIENCE) == 0


def test_an_address_in_use_and_a_missing_library_are_told_by_name(server):
    arguments = ["--model", "demo", "--listen", "localhost:0", "--web", server.web_address]
    command = [sys.executable, "-c", "import sys; from neuron_attribution.cli.main import main; sys.exit(main())"]
    taken = subprocess.run([*command, "serve", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert (taken.returncode, "cannot serve the web page on" in taken.stderr) == (1, True)
    command[2] = "import sys; sys.modules['aiohttp'] = None; " + command[2]
    missing = subprocess.run([*command, "serve", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert missing.returncode == 1
    assert "serve needs aiohttp" in missing.stderr
    assert "pip install 'neuron-attribution[server]'" in missing.stderr


def failed_start(arguments, **environment):
    """What a server that cannot start says; it must be one line of ours, with exit status 1."""
    command = [sys.executable, "-c", "import sys; from neuron_attribution.cli.main import main; sys.exit(main())"]
    command += ["serve", "--model", "demo", "--listen", "localhost:0", "--web", "localhost:0", *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=os.environ | environment
    )
    own = [line for line in ended.stderr.splitlines() if line.startswith("neuron-attribution serve: ")]
    assert (ended.returncode, len(own), "Traceback" in ended.stderr) == (1, 1, False)
    return own[0]


def test_a_folder_too_long_for_a_socket_is_told(tmp_path):
    long = tmp_path / ("long" * 25)
    long.mkdir()
    said = failed_start([], TMPDIR=str(long))
    assert "cannot serve the web page on localhost:0" in said
    assert "shorten TMPDIR" in said


def test_a_certificate_that_has_become_unreadable_is_told(tmp_path, capsys):
    pair = Authority(tmp_path).issue("server")
    config = ServerConfig(
        model="fake",
        listen="localhost:0",
        web="localhost:0",
        tls_certificate=str(pair.certificate),
        tls_key=str(pair.key),
    )
    application = Application(config, ThreadWorker(FakeEngine()))
    pair.certificate.write_text("")
    assert asyncio.run(application.run()) == 1
    said = capsys.readouterr().err
    assert "serve: cannot serve the web page on localhost:0: the web page's certificate cannot be read" in said
