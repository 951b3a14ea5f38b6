"""What somebody without a key may do to the front: heads without end, silence, and trailers."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest

from lamella.serving import connections
from lamella.serving.keys import KeyRing
from tests.serving.conftest import Running

Start = Callable[..., Running]
REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n"


def connected(server: Running) -> socket.socket:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def sent_until_closed(connection: socket.socket, piece: bytes, most: int) -> tuple[int, bytes]:
    """How many bytes the server took before it hung up, at most so many, and what it said."""
    n_bytes = 0
    try:
        while n_bytes < most:
            n_bytes += connection.send(piece)
            connection.settimeout(0.001)
            try:
                if said := connection.recv(1000):
                    return n_bytes, said
                break
            except TimeoutError:
                connection.settimeout(20)
    except OSError:
        pass
    return n_bytes, b""


@pytest.mark.parametrize(
    "piece",
    [b"A: " + b"b" * 1000 + b"\r\n", b"c" * 1000, b"A:b\r\n" * 200],
    ids=["many fields", "one field without end", "short fields"],
)
def test_a_head_has_a_largest_size(run_server: Start, piece: bytes) -> None:
    server = run_server(keys=KeyRing([("secret-key-12", "user")]))
    with connected(server) as connection:
        connection.sendall(REQUEST)
        n_bytes, said = sent_until_closed(connection, piece, 64 << 20)
    assert n_bytes < 4 << 20  # what the kernel's buffers held, and no more
    assert said.startswith(b"HTTP/1.1 400") or not said
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_usual_head_passes_also_as_a_further_request(run_server: Start) -> None:
    server = run_server()
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(f"{server.url}/health", headers={"X": "y" * 30_000}).status_code == 200


def test_trailers_have_a_largest_size(run_server: Start) -> None:
    server = run_server()
    with connected(server) as connection:
        connection.sendall(REQUEST.replace(b"GET /health", b"POST /v1/completions") + b"Transfer-Encoding: chunked\r\n")
        connection.sendall(b"Content-Type: application/json\r\n\r\n1\r\n{\r\n0\r\n")
        n_bytes, _ = sent_until_closed(connection, b"A: " + b"b" * 1000 + b"\r\n", 64 << 20)
    assert n_bytes < 4 << 20


def test_who_sends_no_head_is_hung_up_on(run_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    server = run_server()
    with connected(server) as silent, connected(server) as slow:
        slow.sendall(REQUEST)
        for connection in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(10) == b""


def test_a_request_that_takes_longer_than_its_head_may_is_answered(
    run_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2.0)
    server = run_server()
    with connected(server) as connection:
        body = b'{"prompt": "a"}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        connection.sendall(head + str(len(body)).encode() + b"\r\n\r\n")
        time.sleep(2.2)
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
