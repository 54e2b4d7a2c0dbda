"""The constructor both clients share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import grpc

from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.transport import calls
from neuron_attribution.transport.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, Connection, Pem
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.transport.tracing import trace_metadata

Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)


class BaseClient(ABC, Generic[Channel]):
    """A connection to a neuron attribution service."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        tls: bool = False,
        root_certificates: Pem | None = None,
        certificate: Pem | None = None,
        key: Pem | None = None,
        token: str | None = None,
    ) -> None:
        self._connection = Connection(
            address=address, tls=tls, root_certificates=root_certificates, certificate=certificate, key=key, token=token
        )
        self._timeout = timeout
        self._channel: Channel = self._open()
        self._stub = calls.stub(self._channel)

    def __repr__(self) -> str:
        """Where it calls, and how; never the token itself."""
        connection = self._connection
        secured = "TLS" if connection.is_secured else "no TLS"
        token = ", with a token" if connection.token is not None else ""
        return f"{type(self).__name__}({connection.address!r}: {secured}{token}, timeout {self._timeout} s)"

    @abstractmethod
    def _open(self) -> Channel:
        """The channel calls go through."""

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return self._connection.metadata + trace_metadata()

    def _deadline(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def _error(self, error: grpc.RpcError) -> NeuronAttributionError:
        return from_rpc_error(error, self._connection.address)
