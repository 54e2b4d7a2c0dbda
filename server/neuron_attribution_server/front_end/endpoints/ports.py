"""The gRPC ports: where they listen, and what bounds the connections that others make to them."""

from __future__ import annotations

import resource

import grpc

from neuron_attribution_server.settings.config import ServerConfig

Options = tuple[tuple[str, int], ...]

HANDSHAKE_SECONDS = 20.0
"""How long a connection may take to be made."""
PING_SECONDS = 60.0
"""How often a silent caller is asked whether it is still there."""
PONG_SECONDS = 20.0
"""How long its answer may take."""
_LEAST_PING_SECONDS = 10.0  # clients ping every 30 seconds; a lower bound above that would cut them off
_CALLS = 1000  # on one connection, beside those that may wait in the queue; further ones wait on the caller's side

HEALTH_CONNECTIONS = 100
"""Connections to an address of the health port: few ask for health, and nobody needs leave to."""
_HEALTH_CALLS = 10
_HEALTH_AGE_SECONDS = 300.0
_HEALTH_GRACE_SECONDS = 10.0
_HEALTH_BYTES = 4096


class ListenError(Exception):
    """The address cannot be listened on."""


def service_options(config: ServerConfig) -> Options:
    """The options of the port where the service is."""
    return (
        *_common_options(config.maximum_connection_age, config.connection_grace),
        ("grpc.max_receive_message_length", config.maximum_request_bytes),
        ("grpc.max_send_message_length", config.maximum_message_bytes),
        ("grpc.max_allowed_incoming_connections", min(config.maximum_connections, _descriptors())),
        ("grpc.max_concurrent_streams", config.queued_requests + _CALLS),
        # Else gRPC reads megabytes of each call ahead of whoever waits for its request.
        ("grpc.http2.bdp_probe", 0),
    )


def health_options() -> Options:
    """The options of the port where health is alone."""
    return (
        *_common_options(_HEALTH_AGE_SECONDS, _HEALTH_GRACE_SECONDS),
        ("grpc.max_receive_message_length", _HEALTH_BYTES),
        ("grpc.max_allowed_incoming_connections", HEALTH_CONNECTIONS),
        ("grpc.max_concurrent_streams", _HEALTH_CALLS),
    )


def listen_on(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Listen; return HOST:PORT with the port that was taken. Raises ListenError."""
    host, _, _ = address.rpartition(":")
    try:
        if credentials is None:
            return f"{host}:{server.add_insecure_port(address)}"
        return f"{host}:{server.add_secure_port(address, credentials)}"
    except RuntimeError as error:
        raise ListenError(f"cannot listen on {address}: {error}") from None


def _common_options(age: float, grace: float) -> Options:
    return (
        ("grpc.max_connection_age_ms", _milliseconds(age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(grace)),
        ("grpc.server_handshake_timeout_ms", _milliseconds(HANDSHAKE_SECONDS)),
        ("grpc.keepalive_time_ms", _milliseconds(PING_SECONDS)),
        ("grpc.keepalive_timeout_ms", _milliseconds(PONG_SECONDS)),
        ("grpc.http2.ping_timeout_ms", _milliseconds(PONG_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(_LEAST_PING_SECONDS)),
        # Two servers on one port would share its calls in silence.
        ("grpc.so_reuseport", 0),
    )


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _descriptors() -> int:
    """How many of the file descriptors one address may take. A name may have two: localhost has."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit // 3 if limit != resource.RLIM_INFINITY else 2**31 - 1
