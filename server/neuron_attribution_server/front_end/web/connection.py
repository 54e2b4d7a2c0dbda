"""Connections of the web page: what is no HTTP is answered as a call's error is."""

from __future__ import annotations

from aiohttp import web
from neuron_attribution.errors import InternalError, InvalidArgumentError

from neuron_attribution_server.front_end.http.connection import Connection
from neuron_attribution_server.front_end.web.answers import failure
from neuron_attribution_server.front_end.web.page import HEADERS


class WebConnection(Connection):
    """A connection whose answers carry the headers that a browser heeds."""

    port_name = "web page"
    headers = HEADERS

    def unanswerable(self, status: int, cause: str) -> web.StreamResponse:
        """A status as JSON."""
        if status >= 500:
            return failure(InternalError("internal error"))
        return failure(
            InvalidArgumentError(f"this is no HTTP request that can be read: {cause}", reason="MALFORMED_MESSAGE")
        )
