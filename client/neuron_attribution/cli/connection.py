"""How the commands reach the service."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_attribution.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT
from neuron_attribution.cli.options import UsageError, add_flag, add_option, positive_seconds
from neuron_attribution.client import Client


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options every client command takes."""
    group = parser.add_argument_group("connection")
    add_option(
        group, "--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the service's address, or a gRPC target"
    )
    add_option(
        group,
        "--timeout",
        kind=positive_seconds,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="give up after this time",
    )
    add_option(group, "--token", help="the bearer token; --token-file keeps it out of process lists")
    add_option(group, "--token-file", metavar="FILE", help="a file that holds the bearer token")
    add_flag(group, "--tls", help="use TLS; implied by the certificate options")
    add_option(
        group, "--root-certificates", metavar="FILE", help="PEM certificates to trust instead of the system's own"
    )
    add_option(group, "--certificate", metavar="FILE", help="this client's PEM certificate, for mutual TLS")
    add_option(group, "--key", metavar="FILE", help="the key of --certificate")


def connect(arguments: argparse.Namespace) -> Client:
    """The client the connection options describe."""
    try:
        return Client(
            arguments.address,
            timeout=arguments.timeout,
            tls=arguments.tls,
            root_certificates=arguments.root_certificates,
            certificate=arguments.certificate,
            key=arguments.key,
            token=_token(arguments),
        )
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _token(arguments: argparse.Namespace) -> str | None:
    if arguments.token and arguments.token_file:
        raise UsageError("--token and --token-file exclude each other")
    token: str | None = Path(arguments.token_file).read_text().strip() if arguments.token_file else arguments.token
    return token
