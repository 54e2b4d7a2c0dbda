"""Which names a page on a loopback address answers to: a stranger's name that leads here is not one of them."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


async def only_own_names(host: str) -> list[Middleware]:
    """What refuses foreign Host headers where `host` is a loopback address; elsewhere nothing. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host or None, None, type=socket.SOCK_STREAM)
    if not all(_is_loopback(str(address[0])) for *_, address in found):
        return []

    @web.middleware
    async def refuse_others(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = _name(request.headers.get("Host", ""))
        if name in ("localhost", host.lower()) or _is_loopback(name):
            return await handler(request)
        return web.Response(status=421, text=f"this server listens on a loopback address: ask for it as {host}\n")

    return [refuse_others]


def _name(host: str) -> str:
    """The name in HOST or HOST:PORT; an IPv6 address stands in brackets."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower()


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return False
