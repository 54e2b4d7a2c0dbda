"""What a hostile caller does to an HTTP port, and what is seen of the server's process meanwhile."""

import socket
from contextlib import ExitStack, contextmanager

from service.servers import PATIENCE

HALF_SENT = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Half: "


def link(address):
    """A connection whose end here takes little of what it does not read."""
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=PATIENCE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return made


@contextmanager
def half_sent(address, count, data=HALF_SENT):
    """So many connections on each of which only a part of a request is sent, if they are not refused."""
    with ExitStack() as stack:
        links = [stack.enter_context(link(address)) for _ in range(count)]
        for each in links:
            try_to_send(each, data)
        yield links


def try_to_send(each, data):
    """Send, unless the other end has closed."""
    try:
        each.sendall(data)
    except OSError:
        return False
    return True


def is_closed(each):
    """Whether the other end has closed a connection on which it sends nothing."""
    each.setblocking(False)
    try:
        return each.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def is_answered(made):
    """Whether an answer has begun to come on a connection of http.client."""
    made.sock.setblocking(False)
    try:
        return bool(made.sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        made.sock.settimeout(PATIENCE)


def still_open(links):
    """How many of the connections the other end has not closed."""
    return sum(not is_closed(each) for each in links)
