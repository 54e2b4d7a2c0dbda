"""The server's TLS credentials, from PEM files that may be replaced while it runs."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from functools import partial

import grpc
from cryptography import x509

from neuron_attribution_server.front_end.security.reloading import Reloaded
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig
from neuron_attribution_server.settings.regular_files import read_whole

_HANDSHAKE_BEGINS = 0.1
"""Seconds in which a handshake that has asked for the certificate takes it up.

gRPC asks under a lock, takes up what it has without one, and frees that when it is given another: a crash where a
handshake of another thread is in between. While the answer waits, others wait for the lock, and those in between end.
"""


@dataclass(frozen=True, slots=True)
class _Files:
    """What the PEM files hold, as bytes and as gRPC takes it; and when the certificate expires, in seconds since 1970.

    The same bytes are the same files.
    """

    contents: tuple[bytes | None, ...] = field(repr=False)
    configuration: grpc.ServerCertificateConfiguration = field(compare=False)
    expiry: float = field(compare=False)


class ServerCertificate:
    """A certificate whose files are looked at before each handshake; connections that stand are left alone.

    Raises ConfigurationError for files that cannot be used.
    """

    def __init__(self, certificate: str, key: str, authority: str | None) -> None:
        paths = [path for path in (certificate, key, authority) if path is not None]
        self._files = Reloaded(paths, partial(_read, certificate, key, authority))
        self._given = self._files.value
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._given.configuration,
            self._changed,  # type: ignore[arg-type]  # the stubs do not know that None means no change
            require_client_authentication=authority is not None,
        )

    def expiry(self) -> float:
        """When the certificate that the next handshake uses expires, in seconds since 1970."""
        self._files.refresh()
        return self._files.value.expiry

    def failing(self) -> bool:
        """Whether the files cannot be read any more, so that the next handshake uses what was read before."""
        return self._files.failing()

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        self._files.refresh()
        if self._files.value is self._given:
            return None
        self._given = self._files.value
        time.sleep(_HANDSHAKE_BEGINS)
        return self._given.configuration


def server_certificate(config: ServerConfig) -> ServerCertificate | None:
    """The certificate that the settings name, if any. Raises ConfigurationError."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return ServerCertificate(config.tls_certificate, config.tls_key, config.tls_client_authority)


def _read(certificate: str, key: str, authority: str | None) -> _Files:
    pair = (read_whole(key, "tls_key"), read_whole(certificate, "tls_certificate"))
    roots = None if authority is None else read_whole(authority, "tls_client_authority")
    _check_pair(certificate, key)
    if authority is not None:
        _check_authority(authority)
    configuration = grpc.ssl_server_certificate_configuration([pair], roots)
    return _Files((*pair, roots), configuration, _expiry(certificate, pair[1]))


def _expiry(path: str, pem: bytes) -> float:
    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except ValueError as error:
        raise ConfigurationError(f"tls_certificate: {path} cannot be read: {error}") from None


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
    except ssl.SSLError:
        raise ConfigurationError(f"tls_client_authority: {path} holds no PEM certificate") from None
    except OSError as error:
        raise ConfigurationError(f"tls_client_authority: cannot read {path}: {error.strerror}") from None
