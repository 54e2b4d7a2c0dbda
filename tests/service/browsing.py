"""Calls as JSON over HTTP, as a program or a browser makes them."""

import http.client
import json
from contextlib import closing, contextmanager

from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import PROMPT, FakeEngine
from service.servers import PATIENCE, running_server

ASKED = {"prompt": {"text": PROMPT}}
JSON = {"Content-Type": "application/json"}


@contextmanager
def served(engine=None, **settings):
    with running_server(ThreadWorker(engine or FakeEngine()), web="localhost:0", **settings) as server:
        assert server.loaded.wait(PATIENCE)
        yield server


def connection(address, context=None):
    if context is None:
        return http.client.HTTPConnection(address, timeout=PATIENCE)
    return http.client.HTTPSConnection(address, timeout=PATIENCE, context=context)


def ask(address, method="attribute", message=ASKED, context=None, **headers):
    """Status, headers and JSON of one call."""
    body = message if isinstance(message, bytes) else json.dumps(message)
    fields = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(connection(address, context)) as link:
        link.request("POST", f"/v1/{method}", body, fields)
        answer = link.getresponse()
        data = answer.read()
    is_json = answer.headers.get_content_type() == "application/json"
    return answer.status, answer.headers, json.loads(data) if is_json else data


def reasons(answer):
    return [detail["reason"] for detail in answer["details"] if "reason" in detail]


def page(address, path=""):
    with closing(connection(address)) as link:
        link.request("GET", f"/{path}")
        return link.getresponse().read()
