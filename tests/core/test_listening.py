"""Listening sockets, and why there is none."""

from __future__ import annotations

import socket

import pytest

from lamella.core.errors import InvalidRequest
from lamella.core.listening import listen


def test_port_0_is_a_free_one_that_can_be_connected_to() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=5):
        listener.accept()[0].close()


def test_a_taken_address_and_one_of_another_machine_are_refused_by_name() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InvalidRequest, match=rf"cannot listen on 127\.0\.0\.1, port {port}: .*in use"):
            listen("127.0.0.1", port)
    with pytest.raises(InvalidRequest, match=r"cannot listen on 192\.0\.2\.1, port 0"):  # RFC 5737: nobody's
        listen("192.0.2.1", 0)
    with pytest.raises(InvalidRequest, match="port 70000"):
        listen("127.0.0.1", 70000)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_taken_with_and_without_brackets(host: str) -> None:
    with listen(host, 0) as listener:
        assert listener.getsockname()[0] == "::1"


@pytest.mark.parametrize("host", ["", "a" * 64, "127.0.0.1:80", "[::1]:80", "[]", "["])
def test_what_is_no_host_is_refused_by_name(host: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        listen(host, 0)
    assert str(refused.value).startswith(f"cannot listen on {host}, port 0: ")
