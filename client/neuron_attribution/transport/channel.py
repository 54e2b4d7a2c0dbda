"""How a client reaches a service: target, channel options, credentials and metadata."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

import grpc

DEFAULT_ADDRESS = "localhost:50051"
DEFAULT_TIMEOUT = 60.0
MESSAGE_BYTES = 64 * 1024 * 1024
KEEPALIVE_MILLISECONDS = 30_000
SERVICE = "neuron_attribution.v1.NeuronAttributionService"

Pem = str | PathLike[str] | bytes
"""PEM data: the path of a file, or its bytes."""

# Every call is read-only, so it may be sent again. gRPC waits as long as the server's pushback says where it gives one
# (a full queue), and for the backoff otherwise.
# Five attempts are the most gRPC makes; these waits (0.2, 0.6, 1.8 and 5 seconds) outlast the restart of a worker.
RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "5s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": RETRY_POLICY}],
}

CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the service is and how to reach it.

    TLS is used where `tls` is true or a certificate is given: `root_certificates` to trust instead of the system's,
    `certificate` and `key` of the client for mutual TLS. `token` is sent as a bearer token; give one over TLS only,
    or on a network you trust.
    """

    address: str = DEFAULT_ADDRESS
    tls: bool = False
    root_certificates: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate and its key go together: give both or neither")
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise ValueError("a token is one word of visible ASCII characters")

    @property
    def is_secured(self) -> bool:
        """Whether calls go over TLS."""
        return bool(self.tls or self.root_certificates or self.certificate)

    @property
    def target(self) -> str:
        """The address as a gRPC target. A plain HOST:PORT goes through DNS, so that every replica behind it is used."""
        has_scheme = re.match(r"(dns|unix|unix-abstract|ipv4|ipv6|vsock|xds):", self.address)
        return self.address if has_scheme else f"dns:///{self.address}"

    @cached_property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials, or None for plain text."""
        if not self.is_secured:
            return None
        return grpc.ssl_channel_credentials(
            _read(self.root_certificates, "root_certificates", "CERTIFICATE"),
            _read(self.key, "key", "PRIVATE KEY"),
            _read(self.certificate, "certificate", "CERTIFICATE"),
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def open(self) -> grpc.Channel:
        """A channel for synchronous calls."""
        if self.credentials is None:
            return grpc.insecure_channel(self.target, CHANNEL_OPTIONS)
        return grpc.secure_channel(self.target, self.credentials, CHANNEL_OPTIONS)

    def open_async(self) -> grpc.aio.Channel:
        """A channel for asyncio."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.target, self.credentials, CHANNEL_OPTIONS)


def _read(pem: Pem | None, name: str, kind: str) -> bytes | None:
    """PEM data. gRPC takes any, and fails for as long as it may try again."""
    if pem is None:
        return None
    data = pem if isinstance(pem, bytes) else Path(pem).read_bytes()
    if f"{kind}-----".encode() not in data:
        where = "" if isinstance(pem, bytes) else f" {os.fspath(pem)}"
        raise ValueError(f"{name}{where} holds no {kind.lower()} in PEM format")
    return data
