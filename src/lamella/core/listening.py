"""Listening sockets, and the refusal of an address in words.

with contextlib.closing(listen("127.0.0.1", 8080)) as listener: ...
"""

from __future__ import annotations

import socket

from lamella.core.errors import InvalidRequest


def listen(host: str, port: int, backlog: int = 128) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Args:
        backlog: connections that may wait to be accepted.

    Raises:
        InvalidRequest: the address is taken, or not of this machine.
    """
    if not 0 <= port <= 65535:  # Python says so by an OverflowError, and leaves a socket open
        raise InvalidRequest(f"cannot listen on {host}, port {port}: a port is between 0 and 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise InvalidRequest(f"cannot listen on {host}, port {port}: {error}") from None
