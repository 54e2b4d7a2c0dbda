"""The server's TLS credentials, from PEM files that may be replaced while it runs."""

from __future__ import annotations

import ssl
from functools import partial
from pathlib import Path

import grpc

from neuron_attribution_server.config import ConfigurationError, ServerConfig
from neuron_attribution_server.reloading import Reloaded


def server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Credentials whose files are looked at before each handshake; connections that stand are left alone.

    None without a certificate. Raises ConfigurationError for files that cannot be used.
    """
    certificate, key, authority = config.tls_certificate, config.tls_key, config.tls_client_authority
    if certificate is None or key is None:
        return None
    paths = [path for path in (certificate, key, authority) if path is not None]
    files = Reloaded(paths, partial(_read, certificate, key, authority))

    def changed() -> grpc.ServerCertificateConfiguration | None:
        return files.value if files.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        files.value,
        changed,  # type: ignore[arg-type]  # the stubs do not know that None means no change
        require_client_authentication=authority is not None,
    )


def _read(certificate: str, key: str, authority: str | None) -> grpc.ServerCertificateConfiguration:
    pair = (_content(key, "tls_key"), _content(certificate, "tls_certificate"))
    roots = None if authority is None else _content(authority, "tls_client_authority")
    _check_pair(certificate, key)
    if authority is not None:
        _check_authority(authority)
    return grpc.ssl_server_certificate_configuration([pair], roots)


def _content(path: str, setting: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting}: cannot read {path}: {error.strerror}") from None


def _check_pair(certificate: str, key: str) -> None:
    """gRPC would take any bytes and fail every handshake."""
    try:
        # A password of its own, wrong for every key: without one OpenSSL asks the terminal for it.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = (
                f"the tls_key {key} does not belong to the tls_certificate {certificate}: give the two of one pair"
            )
        else:
            message = f"{certificate} and {key} are no PEM certificate (tls_certificate) and unencrypted key (tls_key)"
        raise ConfigurationError(message) from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {certificate} or {key}: {error.strerror}") from None


def _check_authority(path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except OSError:
        raise ConfigurationError(f"tls_client_authority: {path} holds no PEM certificate") from None
