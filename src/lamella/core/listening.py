"""Listening sockets, and the refusal of an address in words.

with contextlib.closing(listen("127.0.0.1", 8080)) as listener: ...
"""

from __future__ import annotations

import socket

from lamella.core.errors import InvalidRequest


def listen(host: str, port: int, backlog: int = 128) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Args:
        host: a name, or an address, of IPv6 in brackets or without.
        backlog: connections that may wait to be accepted.

    Raises:
        InvalidRequest: the address is taken, or not of this machine.
    """
    if not 0 <= port <= 65535:  # Python says so by an OverflowError, and leaves a socket open
        raise InvalidRequest(f"cannot listen on {host}, port {port}: a port is between 0 and 65535")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        family = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((bare, port), family=family, backlog=backlog)
    except (OSError, UnicodeError) as error:  # the last of names that no resolver takes
        raise InvalidRequest(f"cannot listen on {host}, port {port}: {error}") from None
