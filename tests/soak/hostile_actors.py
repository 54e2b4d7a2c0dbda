"""What callers who mean harm do, each in a thread of its own, again and again until the time is over."""

from __future__ import annotations

import json
import random
import re
import resource
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import grpc
import psutil
from grpc_health.v1 import health_pb2
from neuron_attribution import Client, NeuronAttributionError, convert
from neuron_attribution.neurons import FfnNeuron, Head
from neuron_attribution.requests import (
    AttributeOptions,
    AttributeRequest,
    Direction,
    InterveneRequest,
    Intervention,
    ProjectNeuronRequest,
    ScoringMethod,
)
from neuron_attribution.traces import TraceOptions, TraceRequest
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from service.raw_http2 import RawPeer

from soak.hostile_server import HOSTILE, ORDINARY, REVOKED, HostileServer, token_of

SERVICE = "/neuron_attribution.v1.NeuronAttributionService/"
PEERS = 12
"""Peers with a window of zero that are there at the same time."""
IDLE = 200
"""Connections that are opened to use up file descriptors."""
SPARE_FILES = 24
REVOKED_AND_VALID = "A REVOKED TOKEN IS VALID"
Request = AttributeRequest | InterveneRequest | ProjectNeuronRequest | TraceRequest
SHORT_OF_FILES = SHORT_OF_MEMORY = 1.5
"""Seconds."""
SHORT_ATTRIBUTION = messages.AttributeRequest(prompt=messages.Prompt(text="The capital of Spain is"))


class Actors:
    """All of them, or those who do not `kill` workers. As a context manager: what they opened is closed at the end."""

    def __init__(self, server: HostileServer, seed: int, *, kill: bool = True) -> None:
        self._server = server
        self._kill = kill
        self._random = random.Random(seed)
        self._seconds = 0.0
        self._until = 0.0
        self._opened = ExitStack()
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __str__(self) -> str:
        rows = sorted(self.counts.items())
        return "\n".join(
            f"  {name}: {', '.join(f'{what} {n}' for what, n in each.most_common())}" for name, each in rows
        )

    def act(self, seconds: float) -> None:
        """Do everything for so many seconds."""
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        acts = [
            self.zero_windows,
            self.zero_windows_on_the_health_port,
            self.large_keys,
            self.unread_streams,
            self.heaviest_requests,
            self.big_json,
            self.half_sent_requests,
            self.unreadable_files,
            self.cancelled_work,
            self.random_disconnects,
        ]
        if self._kill:
            acts += [self.no_file_descriptors, self.no_memory_for_a_worker]
        threads = [threading.Thread(target=self._repeat, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _repeat(self, act: Callable[[], Iterator[str]]) -> None:
        """Go through an act, which tells after each step what came of it, until the time is over."""
        while self._is_going:
            try:
                for outcome in act():
                    self.counts[act.__name__][outcome] += 1
                    if not self._is_going:
                        return
            except grpc.RpcError as error:
                self._failed(act, error.code().name)
            except NeuronAttributionError as error:
                self._failed(act, error.reason)
            except OSError as error:
                self._failed(act, type(error).__name__)

    def _failed(self, act: Callable[[], Iterator[str]], outcome: str) -> None:
        """Count it and wait a moment: how often callers come is for whatever stands in front of a server to bound."""
        self.counts[act.__name__][outcome] += 1
        self._pause(0.2)

    @property
    def _is_going(self) -> bool:
        return time.monotonic() < self._until

    def _pause(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self._until - time.monotonic())))

    def zero_windows(self) -> Iterator[str]:
        """Peers that grant no window, on every call of the service and of health."""
        calls = {
            "Attribute": SHORT_ATTRIBUTION,
            "AttributeStream": messages.AttributeStreamRequest(key="key", request=SHORT_ATTRIBUTION, each_token=True),
            "ProjectNeuron": messages.ProjectNeuronRequest(neurons=[_neuron(24, 1005)]),
            "Intervene": messages.InterveneRequest(prompt=SHORT_ATTRIBUTION.prompt, sets=[messages.InterventionSet()]),
            "Trace": messages.TraceRequest(prompt=SHORT_ATTRIBUTION.prompt, nodes=5),
            "Tokenize": messages.TokenizeRequest(text="The capital"),
            "GetModel": messages.GetModelRequest(),
        }
        paths = {SERVICE + name: request for name, request in calls.items()}
        paths |= {f"/grpc.health.v1.Health/{name}": health_pb2.HealthCheckRequest() for name in ("Check", "Watch")}
        metadata = (("authorization", f"Bearer {token_of(HOSTILE)}"),)
        yield from self._open(self._server.address, paths, metadata, self._server.context)

    def zero_windows_on_the_health_port(self) -> Iterator[str]:
        """The same where there is no TLS and no token."""
        paths = {f"/grpc.health.v1.Health/{name}": health_pb2.HealthCheckRequest() for name in ("Check", "Watch")}
        yield from self._open(self._server.health, paths)

    def _open(self, address, paths, metadata=(), context=None) -> Iterator[str]:
        peers: deque[RawPeer] = deque()
        try:
            while self._is_going:
                for path, request in paths.items():
                    peer = RawPeer(address, secure=context)
                    peers.append(peer)
                    peer.open(path, request.SerializeToString(), metadata=metadata)
                    if len(peers) > PEERS:
                        old = peers.popleft()
                        yield "hung up on" if old.closed else "left"
                        old.close()
                    self._pause(0.5)
        finally:
            for peer in peers:
                peer.close()

    def large_keys(self) -> Iterator[str]:
        """Streams whose items have keys of megabytes, asked for token by token, and never read."""
        item = messages.AttributeStreamRequest(
            key="k" * 4_000_000,
            request=messages.AttributeRequest(
                prompt=messages.Prompt(text="A"), completion=messages.Completion(text=" b c d e")
            ),
            each_token=True,
        )
        yield from self._stream([item] * 8, 5.0)

    def unread_streams(self) -> Iterator[str]:
        """Streams of many small items with large answers that are never read."""
        request = messages.AttributeRequest(prompt=messages.Prompt(text="The capital of Spain is"), top_k=300)
        items = [messages.AttributeStreamRequest(key=str(number), request=request) for number in range(64)]
        yield from self._stream(items, 10.0)

    def _stream(self, items: list[messages.AttributeStreamRequest], seconds: float) -> Iterator[str]:
        with self._channel() as channel:
            call = services.NeuronAttributionServiceStub(channel).AttributeStream(iter(items), metadata=self._metadata)
            self._pause(seconds)
            call.cancel()
            yield "cancelled"

    def heaviest_requests(self) -> Iterator[str]:
        """The heaviest request of each method and call that is allowed: what is refused is lowered as it says."""
        with self._channel() as channel:
            for request in _heavy_requests():
                lowered: Request | None = request
                while lowered is not None:
                    outcome, lowered = self._try(channel, lowered)
                    yield outcome
                    self._pause(0.1)

    def _try(self, channel: grpc.Channel, request: Request) -> tuple[str, Request | None]:
        """Send a request and leave after a while: what came of it, and what to try next."""
        try:
            self._send(channel, request, 5.0)
        except grpc.RpcError as caught:
            error = from_rpc_error(caught, "the server")
            return error.reason, _lowered(request, error)
        return "answered", None

    def _send(self, channel: grpc.Channel, request: Request, timeout: float) -> None:
        stub = services.NeuronAttributionServiceStub(channel)
        if isinstance(request, AttributeRequest):
            call, message = stub.Attribute, convert.attribute_request_to_proto(request)
        elif isinstance(request, InterveneRequest):
            call, message = stub.Intervene, convert.intervene_request_to_proto(request)
        elif isinstance(request, TraceRequest):
            call, message = stub.Trace, convert.trace_request_to_proto(request)
        else:
            call, message = stub.ProjectNeuron, convert.project_neuron_request_to_proto(request)
        call(message, timeout=timeout, metadata=self._metadata)

    def big_json(self) -> Iterator[str]:
        """Bodies of megabytes on the web port, several at once."""
        body = json.dumps({"prompt": {"token_ids": {"ids": [7] * 1_300_000}}}).encode()
        threads = [threading.Thread(target=self._post, args=(body,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield "eight bodies"

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token_of(HOSTILE)}"}
        request = urllib.request.Request(f"https://{self._server.web}/v1/attribute", body, headers)
        request.add_header("Host", "localhost")
        try:
            with urllib.request.urlopen(request, timeout=60, context=self._web_context()) as response:
                outcome = str(response.status)
        except urllib.error.HTTPError as error:
            outcome = str(error.code)
        except OSError as error:
            outcome = type(error).__name__
        self.counts["big_json"][outcome] += 1

    def _web_context(self):
        import ssl

        return ssl.create_default_context(cafile=str(self._server.authority.certificate))

    def half_sent_requests(self) -> Iterator[str]:
        """Requests on the metrics and web ports that never come to an end."""
        with ExitStack() as stack:
            for _ in range(60):
                for address in (self._server.metrics, self._server.web):
                    link = stack.enter_context(_connected(address))
                    with suppress(OSError):
                        link.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Half: ")
            yield "a hundred and twenty"
            self._pause(6.0)

    def no_file_descriptors(self) -> Iterator[str]:
        """Once: connections until there is no descriptor left, and a worker that dies just then."""
        self._pause(self._seconds / 3)
        files = psutil.Process(self._server.pid).num_fds() + SPARE_FILES
        with self._server.limited(resource.RLIMIT_NOFILE, files), ExitStack() as stack:
            for number in range(IDLE):
                ports = (self._server.address, self._server.health, self._server.metrics, self._server.web)
                with suppress(OSError):
                    stack.enter_context(_connected(ports[number % len(ports)]))
            self._server.kill_worker()
            self._pause(SHORT_OF_FILES)
        yield "once"
        self._pause(self._seconds)

    def no_memory_for_a_worker(self) -> Iterator[str]:
        """Once: no address space for a new worker, and the one there is dies."""
        self._pause(self._seconds * 2 / 3)
        size = psutil.Process(self._server.pid).memory_info().vms
        with self._server.limited(resource.RLIMIT_AS, size + (64 << 20)):
            self._server.kill_worker()
            self._pause(SHORT_OF_MEMORY)
        yield "once"
        self._pause(self._seconds)

    def unreadable_files(self) -> Iterator[str]:
        """The token file and the certificate vanish and come back; a token that was revoked meanwhile is refused."""
        tokens, certificate = self._server.tokens, self._server.pair.certificate
        with self._server.client(REVOKED) as client:
            client.get_model()
            for path in (tokens, certificate):
                path.rename(path.with_suffix(".away"))
                path.symlink_to("/nowhere")
            self._pause(3.0)
            for path in (tokens, certificate):
                path.unlink()
                path.with_suffix(".away").rename(path)
            self._server.write_tokens(ORDINARY, HOSTILE)
            yield self._refusal(client)
        self._server.write_tokens(ORDINARY, HOSTILE, REVOKED)
        self._server.pair.replace_by(self._server.authority.issue("fresh"))
        self._pause(4.0)

    def _refusal(self, client: Client) -> str:
        """What a revoked token is refused with, once the file can be read, for which there may be no descriptor."""
        for _ in range(30):
            try:
                client.get_model()
            except NeuronAttributionError as error:
                return error.reason
            if not self._is_going:
                return "left too soon"
            self._pause(1.0)
        return REVOKED_AND_VALID

    def cancelled_work(self) -> Iterator[str]:
        """Long requests whose callers leave after a moment."""
        with self._channel() as channel:
            options = AttributeOptions(direction=Direction.BOTH, top_k=1000, projection_top_k=0)
            request = AttributeRequest(prompt=f"The {self._random.random()}", completion=" a b c", options=options)
            self._send(channel, request, self._random.uniform(0.1, 1.0))
            yield "answered"

    def random_disconnects(self) -> Iterator[str]:
        """Connections that are reset at once, after some bytes that may be anything."""
        ports = (self._server.address, self._server.health, self._server.metrics, self._server.web)
        with _connected(self._random.choice(ports)) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                link.sendall(self._random.randbytes(self._random.randrange(200)))
        yield "reset"
        self._pause(0.05)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {token_of(HOSTILE)}"),)

    def _channel(self) -> grpc.Channel:
        roots = grpc.ssl_channel_credentials(self._server.authority.certificate.read_bytes())
        return grpc.secure_channel(self._server.address, roots, [("grpc.use_local_subchannel_pool", 1)])


def _connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 5)


def _neuron(layer: int, index: int) -> messages.Neuron:
    return messages.Neuron(ffn=messages.FfnNeuron(layer=layer, index=index))


def _heavy_requests() -> Iterator[Request]:
    """More than is allowed of everything; answers small enough to be sent."""
    ids = tuple(range(100, 400))
    for method in ScoringMethod:
        options = AttributeOptions(
            scoring_method=method, direction=Direction.BOTH, top_k=1000, head_top_k=1000, projection_top_k=1
        )
        yield AttributeRequest(prompt=ids[:40], completion=ids[:100], options=options)
    yield AttributeRequest(prompt=ids, options=AttributeOptions(exhaustive=True, projection_top_k=0))
    yield AttributeRequest(prompt=ids[:50], generate=100)
    neurons = tuple(FfnNeuron(number % 30, number) for number in range(1000))
    yield ProjectNeuronRequest(neurons=neurons, top_k=1000)
    yield ProjectNeuronRequest(neurons=neurons, through=Head(3, 1), top_k=300)
    changed = (Intervention(neurons=neurons[:30]),)
    yield InterveneRequest(prompt=ids[:100], sets=(changed,) * 30)
    yield InterveneRequest(prompt=ids[:40], sets=(changed,) * 16, generate=100)
    yield TraceRequest(prompt=ids, completion=ids[:50], options=TraceOptions(nodes=500, screened=4096, heads=True))


def _lowered(request: Request, error: NeuronAttributionError) -> Request | None:
    """What a refusal advises; None where the request is allowed, or nothing is advised."""
    if not error.violations and error.reason not in ("NEEDS_TOO_MUCH_MEMORY", "RESPONSE_TOO_LARGE"):
        return None
    advised = re.search(r"at most (\d+)", error.message)
    value = int(advised[1]) if advised else None
    if isinstance(request, AttributeRequest) and request.options.exhaustive:
        shorter = request.prompt[: len(request.prompt) // 2]
        return replace(request, prompt=shorter) if shorter else None
    if isinstance(request, TraceRequest):
        fewer = replace(request.options, nodes=request.options.nodes // 4, screened=None)
        return replace(request, options=fewer) if fewer.nodes else None
    for field in ("generate", "completion", "neurons"):
        asked = getattr(request, field, None)
        if asked:
            size = asked if isinstance(asked, int) else len(asked)
            smaller = value or max(1, size // 4)
            if smaller == size:
                break
            return replace(request, **{field: smaller if isinstance(asked, int) else asked[:smaller]})
    if isinstance(request, AttributeRequest) and request.options.top_k > 1:
        return replace(request, options=replace(request.options, top_k=request.options.top_k // 2))
    return None
