"""The web server on a loopback port: streams as they come, clients that leave, limits, TLS, and shutdown."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lamella.client.server import ServerClient
from lamella.core.errors import InvalidRequest
from lamella.serving.keys import KeyRing
from lamella.serving.server import serve
from lamella.serving.settings import FrontSettings, Limits
from tests.fakes.engine import FakeEngine, FakeStream, Script
from tests.serving.conftest import Running

Start = Callable[..., Running]
BODY = {"prompt": "a b", "stream": True}
CHAT = {"messages": [{"role": "user", "content": "a"}], "stream": True}


class Gated:
    """An engine that waits before a token until told."""

    def __init__(self, gate_at: int = 1, pieces: tuple[str, ...] = ("one", " two", " three")) -> None:
        self._gate_at, self._pieces = gate_at, pieces

    def __call__(self) -> FakeEngine:
        self.gate = asyncio.Event()
        return FakeEngine(Script(pieces=self._pieces, gate=self.gate, gate_at=self._gate_at))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def lines(response: httpx.Response) -> Iterator[str]:
    return (line for line in response.iter_lines() if line)


def text(line: str) -> str:
    return str(json.loads(line.removeprefix("data: "))["choices"][0]["text"])


def stream_of(server: Running) -> FakeStream:
    until(lambda: bool(server.engine.streams))
    return server.engine.streams[0]


def posted(server: Running, path: str, body: dict[str, object]) -> socket.socket:
    """A connection on which something was asked; closing it is to leave."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    address = httpx.URL(server.url)
    connection = socket.create_connection((address.host, address.port or 0))
    connection.sendall(head.encode() + b"\r\n\r\n" + content)
    return connection


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_server_at_an_address_of_ipv6_is_reached_at_its_url(run_server: Start, host: str) -> None:
    server = run_server(host=host)
    assert server.url.startswith("http://[::1]:")
    assert httpx.get(f"{server.url}/admin/status").status_code == 200  # loopback, too
    with ServerClient(server.url) as client:
        assert client.models()[0] == "tiny"


def test_a_token_is_sent_when_it_comes(run_server: Start) -> None:
    gated = Gated()
    server = run_server(gated)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=BODY, timeout=30) as response:
        parts = lines(response)
        assert text(next(parts)) == "one"
        assert not stream_of(server).is_over
        server.do(gated.gate.set)
        assert [text(next(parts)) for _ in range(3)] == [" two", " three", ""]
        assert next(parts) == "data: [DONE]"
    assert not stream_of(server).is_cancelled


@pytest.mark.parametrize("gate_at", [-1, 0])
@pytest.mark.parametrize("body", [BODY, {"prompt": "a b"}, {**BODY, "n": 2}])
def test_a_client_that_leaves_ends_its_request(run_server: Start, body: dict[str, object], gate_at: int) -> None:
    server = run_server(Gated(gate_at))
    with posted(server, "/v1/completions", body):
        until(lambda: len(server.engine.streams) == int(str(body.get("n", 1))))
        assert not stream_of(server).is_cancelled
    until(lambda: all(stream.is_over for stream in server.engine.streams))
    assert all(stream.is_cancelled for stream in server.engine.streams)
    until(lambda: server.engine.n_open == 0)
    metrics = httpx.get(f"{server.url}/metrics").text
    if "stream" not in body:
        assert 'lamella_requests_total{route="/v1/completions",status="499"} 1.0' in metrics
    assert 'lamella_generations_total{priority="normal",reason="cancelled"}' in metrics


@pytest.mark.parametrize(("path", "body", "n_events"), [("completions", BODY, 5), ("chat/completions", CHAT, 6)])
def test_a_stream_that_is_silent_for_long_says_that_it_lives(
    run_server: Start, path: str, body: dict[str, object], n_events: int
) -> None:
    gated = Gated(gate_at=0)
    server = run_server(gated, keep_alive_seconds=0.02)
    with httpx.stream("POST", f"{server.url}/v1/{path}", json=body, timeout=30) as response:
        parts, silent = lines(response), list[str]()
        while silent.count(": keep-alive") < 2:
            silent.append(next(parts))
        assert len(silent) <= 2 + (n_events == 6)  # of a chat its role comes at once, or after a comment
        server.do(gated.gate.set)
        said = [line for line in (*silent, *parts) if not line.startswith(":")]
    assert len(said) == n_events
    assert said[-1] == "data: [DONE]"


def test_a_stream_that_speaks_has_no_comments(run_server: Start) -> None:
    server = run_server(lambda: FakeEngine(Script(pieces=["a"] * 50)), keep_alive_seconds=30.0)
    answer = httpx.post(f"{server.url}/v1/completions", json={**BODY, "max_tokens": 50}, timeout=30)
    assert ": keep-alive" not in answer.text


def test_embeddings_end_when_their_client_leaves(run_server: Start) -> None:
    server = run_server(lambda: FakeEngine(embed_gate=asyncio.Event()))
    with posted(server, "/v1/embeddings", {"input": "a"}):
        until(lambda: server.engine.n_embedding == 1)
    until(lambda: server.engine.n_embed_cancelled == 1)
    until(lambda: 'route="/v1/embeddings",status="499"' in httpx.get(f"{server.url}/metrics").text)


def test_a_slow_reader_holds_up_nobody_and_gets_all(run_server: Start) -> None:
    pieces = tuple(str(number) * 4000 for number in range(1000))
    server = run_server(lambda: FakeEngine(Script(pieces=pieces)))
    body = {**BODY, "max_tokens": 1000}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as response:
        until(lambda: bool(server.engine.streams))
        assert httpx.get(f"{server.url}/health", timeout=30).status_code == 200
        assert not stream_of(server).is_over
        read = [text(line) for line in lines(response) if line != "data: [DONE]"]
    assert tuple(read[:-1]) == pieces


def test_a_body_without_length_is_counted_as_it_comes(run_server: Start) -> None:
    server = run_server(limits=Limits(body_bytes=1000))

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/completions", content=chunks(), headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_shutdown_lets_streams_end_and_turns_others_away(run_server: Start) -> None:
    gated = Gated()
    server = run_server(gated, drain_seconds=25.0)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=BODY, timeout=30) as response:
        parts = lines(response)
        next(parts)
        server.begin_stop()
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        for path, body in (("completions", {"prompt": "a"}), ("embeddings", {"input": "a"})):
            refused = httpx.post(f"{server.url}/v1/{path}", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{server.url}/health").status_code == 200
        server.do(gated.gate.set)
        assert list(parts)[-1] == "data: [DONE]"
    assert server.wait()


@pytest.mark.parametrize("streamed", [True, False])
def test_what_does_not_end_in_time_is_told_and_cut_off(run_server: Start, streamed: bool) -> None:
    server = run_server(Gated(gate_at=0), drain_seconds=0.5)
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": streamed}, timeout=30))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: bool(server.engine.streams))
    server.begin_stop()
    asking.join(30)
    assert server.wait()
    (answer,) = answers
    assert answer.status_code == (200 if streamed else 503)
    assert '"code":"draining"' in answer.text
    assert "[DONE]" not in answer.text


def test_signals_drain_and_a_second_one_does_not_wait() -> None:
    program = """
import asyncio, os, signal, sys
from lamella.serving.server import serve
from lamella.serving.settings import FrontSettings
from tests.fakes.engine import FakeEngine, Script

async def main():
    engine = FakeEngine(Script(gate=asyncio.Event()))
    await serve(engine, FrontSettings(port=0, drain_seconds=600), on_listening=lambda url: print(url, flush=True))
    print("ended", [stream.is_cancelled for stream in engine.streams], flush=True)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=CHAT, timeout=60) as response:
            parts = lines(response)
            next(parts)
            process.terminate()
            until(lambda: httpx.get(f"{url}/ready").status_code == 503)
            assert process.poll() is None
            process.terminate()
            assert '"code":"draining"' in list(parts)[-1]
        assert process.wait(60) == 0
        assert process.stdout.read() == "ended [True]\n"
        assert process.stderr.read() == ""


def test_tls(run_server: Start, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    asked = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*asked.split(), *files], check=True, capture_output=True)
    server = run_server(certificate=certificate, private_key=key)
    assert server.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=certificate)
    assert httpx.get(f"{server.url}/ready", verify=context).status_code == 200


def test_settings_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidRequest, match="both"):
        FrontSettings(certificate=tmp_path / "empty")
    with pytest.raises(InvalidRequest, match="most tokens of one prompt must be at least 1, not -1"):
        Limits(prompt_tokens=-1)
    with pytest.raises(InvalidRequest, match="most tokens of one answer must be at least 1, not 0"):
        Limits(output_tokens=0)
    with pytest.raises(InvalidRequest, match="cannot use"):
        asyncio.run(start(FrontSettings(certificate=tmp_path / "empty", private_key=tmp_path / "empty", port=0)))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InvalidRequest, match="cannot listen"):
        asyncio.run(start(FrontSettings(port=taken.getsockname()[1])))


async def start(settings: FrontSettings) -> None:
    await serve(FakeEngine(), settings)


def test_a_request_leaves_a_line_only_where_it_is_asked_for(
    run_server: Start, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "secret-key-0123"
    for access_log, n_lines in ((True, 1), (False, 0)):
        server = run_server(access_log=access_log, keys=KeyRing([(key, "user")]))
        answer = httpx.get(f"{server.url}/v1/models?x={access_log}", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200
        server.stop()
        out, err = capfd.readouterr()
        assert (err.count("/v1/models"), out) == (n_lines, "")
        assert key not in err + caplog.text
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
