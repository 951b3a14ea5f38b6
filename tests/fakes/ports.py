"""Ports for programs that must be told one."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

FIRST, END = 20_000, 32_768
"""Below the ports that Linux gives to connections and to who asks for any: nobody gets one of these by chance."""
_TRIED = itertools.count(os.getpid() * 37)


def free_port() -> int:
    """One of loopback that nothing has now; another at each call."""
    for number in itertools.islice(_TRIED, END - FIRST):
        port = FIRST + number % (END - FIRST)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
