"""TLS of the web page: the same files as for gRPC, looked at before each handshake."""

from __future__ import annotations

import ssl

from neuron_attribution_server.front_end.security.reloading import Reloaded
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig
from neuron_attribution_server.settings.regular_files import read_whole


def web_context(config: ServerConfig) -> ssl.SSLContext | None:
    """A context that follows its files, or None where there is no TLS."""
    certificate, key, authority = config.tls_certificate, config.tls_key, config.tls_client_authority
    if certificate is None or key is None:
        return None

    named = {"tls_certificate": certificate, "tls_key": key}
    if authority is not None:
        named["tls_client_authority"] = authority

    def read() -> ssl.SSLContext:
        for setting, path in named.items():
            read_whole(path, setting)  # OpenSSL, which opens them itself, would wait for a FIFO
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certificate, key, password="")
            if authority is not None:
                context.load_verify_locations(authority)
                context.verify_mode = ssl.CERT_REQUIRED
                # A resumed session would not ask who signed the client's certificate. TLS 1.3 resumes by tickets
                # alone; TLS 1.2 also by what the context remembers, which Python cannot turn off.
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.num_tickets = 0
        except OSError as error:
            raise ConfigurationError(f"the web page's certificate cannot be read: {error}") from None
        return context

    files = Reloaded(tuple(named.values()), read)

    def follow(handshake: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        files.refresh()
        handshake.context = files.value

    first = files.value
    first.sni_callback = follow  # called for every handshake, with or without a name
    return first
