"""Where machines listen, as people and files write it: ``10.0.0.1:7400``, ``node.example:7410``, ``[::1]:7400``."""

from __future__ import annotations

import ipaddress
import re

from lamella.core.errors import InvalidRequest

LOOPBACK = "127.0.0.1"
_PORT = re.compile(r"[0-9]{1,5}")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises:
        InvalidRequest: something else, or a host that cannot be looked up, or that a terminal would not show as it is:
            addresses come from machines that nobody knows yet.
    """
    if _is_ipv6(address):
        raise InvalidRequest(f"'{address}' has no port; an IPv6 address with one is written as in [::1]:7400")
    host, colon, port = address.rpartition(":")
    in_brackets = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if in_brackets else host
    if not colon or not bare or not _PORT.fullmatch(port) or int(port) >= 1 << 16:
        raise InvalidRequest(f"{address[:100]!r} is no HOST:PORT")
    if not bare.isprintable() or " " in bare or not _can_be_looked_up(bare):
        raise InvalidRequest(f"{address[:100]!r} names no host")
    if in_brackets and not _is_ipv6(bare):
        raise InvalidRequest(f"'{address}': what stands in brackets is no IPv6 address")
    if not in_brackets and any(c in bare for c in ":[]"):
        raise InvalidRequest(f"'{address}': write an IPv6 address in brackets, as in [::1]:7400")
    return bare, int(port)


def split_address_or_host(address: str, default_port: int) -> tuple[str, int]:
    """As ``split_address``; a host alone, of IPv6 in brackets or without, gets the default port.

    Raises:
        InvalidRequest: as ``split_address``.
    """
    if _is_ipv6(address):
        return address, default_port
    has_port = ":" in address.rpartition("]")[2]
    return split_address(address if has_port else f"{address}:{default_port}")


def _is_ipv6(host: str) -> bool:
    try:
        scope = ipaddress.IPv6Address(host).scope_id  # which Python lets be anything
    except ValueError:
        return False
    return ":" not in (scope or "")


def _can_be_looked_up(host: str) -> bool:
    """Whether a resolver takes the name: parts of 1 to 63 characters between dots."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def join_address(host: str, port: int) -> str:
    """``HOST:PORT``, with brackets where they are due."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
