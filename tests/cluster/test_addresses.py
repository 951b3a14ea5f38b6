"""Where machines listen, as people write it."""

from __future__ import annotations

import pytest

from lamella.cluster.addresses import join_address, split_address, split_address_or_host
from lamella.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("10.0.0.1:7400", "10.0.0.1", 7400),
        ("node.example:1", "node.example", 1),
        ("[::1]:7400", "::1", 7400),
        ("[fe80::1%eth0]:7400", "fe80::1%eth0", 7400),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, host: str, port: int) -> None:
    assert split_address(address) == split_address_or_host(address, 9) == (host, port)
    assert join_address(host, port) == address


@pytest.mark.parametrize("host", ["10.0.0.1", "node.example", "::1", "[::1]", "::", "[::]", "fe80::1%eth0", "fd00::5"])
def test_a_host_alone_has_the_usual_port_where_there_is_one(host: str) -> None:
    assert split_address_or_host(host, 7400) == (host.strip("[]"), 7400)
    with pytest.raises(InvalidRequest, match=r"no HOST:PORT|has no port"):
        split_address(host)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("[::1]:", "no HOST:PORT"),
        ("::1:x", "no HOST:PORT"),
        ("[::1]:99999", "no HOST:PORT"),
        ("[]:7400", "no HOST:PORT"),
        ("fe80::1%eth0:7400", "in brackets, as in"),
        ("[::1:7400", "in brackets, as in"),
        ("::1]:7400", "in brackets, as in"),
        ("a:b:7400", "in brackets, as in"),
        ("[10.0.0.1]:7400", "what stands in brackets is no IPv6 address"),
        ("[a:b]:7400", "what stands in brackets is no IPv6 address"),
    ],
)
def test_what_is_neither_is_refused(address: str, says: str) -> None:
    for read in (split_address, lambda text: split_address_or_host(text, 7400)):
        with pytest.raises(InvalidRequest, match=says):
            read(address)


def test_an_address_of_ipv6_that_may_have_swallowed_its_port_is_not_taken_apart() -> None:
    with pytest.raises(InvalidRequest, match=r"'::1:7400' has no port; .* written as in \[::1\]:7400"):
        split_address("::1:7400")
