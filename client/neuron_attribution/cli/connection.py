"""How the commands reach the service."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TypeVar

from neuron_attribution.cli.options import UsageError, add_flag, add_option, positive_seconds, variable
from neuron_attribution.clients.aio import AsyncClient
from neuron_attribution.clients.client import Client
from neuron_attribution.transport.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT

TOKEN_VARIABLE = variable("--token")

AnyClient = TypeVar("AnyClient", Client, AsyncClient)


def add_connection_arguments(parser: argparse.ArgumentParser, address: str | None = DEFAULT_ADDRESS) -> None:
    """Add the options every client command takes; `address` is the default of --address."""
    group = parser.add_argument_group("connection")
    add_option(group, "--address", default=address, metavar="HOST:PORT", help="the service's address, or a gRPC target")
    add_option(
        group,
        "--timeout",
        kind=positive_seconds,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="give up after this time",
    )
    add_option(
        group, "--token-file", metavar="FILE", help=f"a file that holds the bearer token; without it, {TOKEN_VARIABLE}"
    )
    add_flag(group, "--tls", help="use TLS; implied by the other TLS options")
    add_option(group, "--tls-authority", metavar="FILE", help="PEM certificates to trust instead of the usual ones")
    add_option(group, "--tls-certificate", metavar="FILE", help="this client's PEM certificate, for mutual TLS")
    add_option(group, "--tls-key", metavar="FILE", help="the key of --tls-certificate")


def connect(arguments: argparse.Namespace) -> Client:
    """The client the connection options describe."""
    return connect_as(Client, arguments)


def connect_as(kind: type[AnyClient], arguments: argparse.Namespace) -> AnyClient:
    """The same as a client of either kind."""
    try:
        return kind(
            arguments.address,
            timeout=arguments.timeout,
            tls=arguments.tls,
            root_certificates=arguments.tls_authority,
            certificate=arguments.tls_certificate,
            key=arguments.tls_key,
            token=_token(arguments),
        )
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _token(arguments: argparse.Namespace) -> str | None:
    """The token is no option: every user of a machine can read the command lines of its processes."""
    if arguments.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(arguments.token_file).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        token = ""
    if len(token.split()) != 1:
        raise UsageError(f"the token file {arguments.token_file} must hold the token and nothing else")
    return token
