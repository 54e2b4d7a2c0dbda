"""A server process whose engine answers at length, watched from outside, and what callers without manners ask it."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import psutil
from neuron_attribution import Client
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.services import SERVICE
from service.faulty_engines import TALK
from service.scraping import Watched, free_address
from service.servers import PATIENCE, attribution, listening_address, server_process

MIB = 2**20
LONG = (1, TALK)
"""A prompt that is answered at length."""
PATIENT_SECONDS = 1.0
CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.bdp_probe", 0),  # else it may take megabytes that nobody has asked for
)
COPIES = {"Attribute": 2, "AttributeStream": 3}
SETTINGS = {
    "module": "faulty_engines",
    "log_format": "text",
    "transfer_timeout": PATIENT_SECONDS,
    "unread_bytes": 256 * MIB,
    "held_request_bytes": 32 * MIB,
}


METHODS = {"Attribute": "unary", "AttributeStream": "bidi_stream"}


@dataclass
class Served:
    """A server process, its address, what its metrics gained, and what it has logged."""

    process: object
    address: str
    added: Watched
    log: list[str]

    @property
    def mebibytes(self):
        return psutil.Process(self.process.pid).memory_info().rss // MIB

    @contextmanager
    def stub(self):
        with grpc.insecure_channel(self.address, CHANNEL) as channel:
            yield services.NeuronAttributionServiceStub(channel)

    def is_clean(self):
        """Whether no call has failed by the server's fault, and nothing looks so in the log."""
        text = "".join(self.log)
        counted = [self.ended(method, code) for method in METHODS for code in ("Internal", "Unknown")]
        return not any(counted) and "Traceback" not in text and "internal" not in text.lower()

    def ended(self, method, code):
        labels = {"grpc_type": METHODS[method], "grpc_service": SERVICE, "grpc_method": method, "grpc_code": code}
        return self.added("grpc_server_handled_total", **labels)


@contextmanager
def serving(token=None, **settings):
    metrics = free_address()
    with server_process("make_talkative_engine", metrics_listen=metrics, **SETTINGS | settings) as process:
        address, log = listening_address(process), []
        assert process.stdout.readline().startswith("ready: ")
        threading.Thread(target=lambda: log.extend(process.stderr), daemon=True).start()
        with Client(address, token=token) as client:
            client.attribute(LONG)  # from now on it is in the cache
        yield Served(process, address, Watched(metrics), log)


def long_request(**fields):
    prompt = messages.Prompt(token_ids=messages.TokenIds(ids=LONG))
    return messages.AttributeRequest(prompt=prompt, **fields)


def item(key="k", request=None, **fields):
    return messages.AttributeStreamRequest(key=key, request=request or long_request(), **fields)


def path(method):
    return f"/{SERVICE}/{method}"


def largest_growth(server, begin, until):
    """The mebibytes that the front end comes to hold beyond those of before, from `begin()` on."""
    before, largest, deadline = server.mebibytes, 0, time.monotonic() + PATIENCE
    begin()
    while not until() and time.monotonic() < deadline:
        largest = max(largest, server.mebibytes - before)
        time.sleep(0.02)
    return largest


def others_are_answered(server):
    with server.stub() as stub:
        return bool(stub.Attribute(attribution(), timeout=PATIENCE).explanations)


def open_stream(peer, items, opened):
    """Begin a stream of serialized items that stays open, and note it."""
    opened.append(peer.open(path("AttributeStream"), *items, end=False))
