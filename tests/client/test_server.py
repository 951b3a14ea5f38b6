"""The client against the server's own front, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lamella.batching.messages import Chat, Generate
from lamella.client.answers import lines_of
from lamella.client.server import Patience, ServedVariant, ServerClient
from lamella.core.errors import EngineUnavailable, InvalidRequest, QueueFull, RemoteFailed, RemoteInvalid
from lamella.serving.keys import KeyRing
from tests.fakes.engine import FakeEngine, Script
from tests.fakes.web import serving
from tests.serving.conftest import Running

USER, ADMIN = "user-key-5f1c", "admin-key-9a3e"
HELLO = [{"role": "user", "content": "Say hello"}]
Start = Callable[..., Running]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def script(request: Generate) -> Script:
    assert isinstance(request.prompt, Chat)
    return {
        "die": Script(break_after=1, break_with=EngineUnavailable("No engine.")),
        "wait": Script(gate=asyncio.Event(), gate_at=1),
        "separators": Script(pieces=["a\u2028b", "\x85c\u2029"]),
    }.get(request.prompt.messages[-1]["content"], Script())


@pytest.fixture
def server(run_server: Start) -> Running:
    keys = KeyRing([(USER, "user"), (ADMIN, "admin")])
    return run_server(lambda: FakeEngine(choose=script), keys=keys, keep_alive_seconds=0.02)


@pytest.fixture
def client(server: Running) -> Iterator[ServerClient]:
    with ServerClient(f"{server.url}/v1/", ADMIN) as made:
        yield made


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_chat_streams_and_says_what_it_was(server: Running, client: ServerClient) -> None:
    answer = client.chat(HELLO, "tiny@small", temperature=0, max_tokens=2, seed=None)
    assert "".join(answer) == "Hello world"
    stats = answer.stats
    assert (stats.model, stats.finish_reason, stats.n_prompt, stats.n_generated) == ("tiny@small", "stop", 2, 2)
    assert stats.first_seconds is not None
    (request,) = server.engine.requests
    assert (request.variant, request.max_tokens, request.sampling.temperature) == ("small", 2, 0)


def test_a_silent_server_lets_the_caller_look_around_and_closing_ends_the_request(
    server: Running, client: ServerClient
) -> None:
    answer = client.chat(said("wait"))
    pieces = iter(answer)
    assert next(pieces) == ""  # the role, or a sign of life before it
    assert next(filter(None, pieces)) == "Hello"
    assert [next(pieces) for _ in range(2)] == ["", ""]  # only signs of life
    answer.close()
    until(lambda: server.engine.streams[0].is_cancelled)


def test_variants_as_an_admin_and_as_a_user(server: Running, client: ServerClient) -> None:
    assert client.variants() == [ServedVariant("large", True), ServedVariant("small", False)]
    with ServerClient(server.url, USER) as user:
        assert user.variants() == [ServedVariant("large", None), ServedVariant("small", None)]
        assert user.models() == ["tiny", "tiny@large", "tiny@small"]


def test_a_switch(server: Running, client: ServerClient) -> None:
    done = client.switch("small")
    assert (done.before, done.after, done.stall_seconds) == ("large", "small", 0.001)
    assert server.engine.calls == [("switch", "small", "keep")]
    with pytest.raises(InvalidRequest, match="large, small"):
        client.switch("medium")
    with ServerClient(server.url, USER) as user, pytest.raises(RemoteFailed, match="role admin"):
        user.switch("small")


@pytest.mark.parametrize(
    ("key", "says"), [(None, "wants a key: --key, or LAMELLA_API_KEY"), ("wrong-key", "does not know")]
)
def test_keys_that_do_not_open(server: Running, key: str | None, says: str) -> None:
    with ServerClient(server.url, key) as client, pytest.raises(RemoteFailed, match=says):
        client.models()


def test_a_request_that_makes_no_sense(client: ServerClient) -> None:
    with pytest.raises(InvalidRequest, match="does not exist; there are tiny"):
        list(client.chat(HELLO, "gpt-4"))
    with pytest.raises(InvalidRequest, match="temperature"):
        list(client.chat(HELLO, temperature=9))


def test_a_server_that_gives_up_in_the_middle(client: ServerClient) -> None:
    pieces = iter(client.chat(said("die")))
    with pytest.raises(RemoteFailed, match="gave up: No engine"):
        list(pieces)


def test_an_answer_may_have_what_other_texts_end_lines_with(client: ServerClient) -> None:
    assert "".join(client.chat(said("separators"))) == "a\u2028b\x85c\u2029"


def test_lines_end_where_a_stream_of_events_ends_them() -> None:
    assert list(lines_of(["data: a\u2028", "b\r", "\n\nda", "ta"])) == ["data: a\u2028b", "", "data"]


def test_nobody_there() -> None:
    with ServerClient("http://127.0.0.1:9") as client, pytest.raises(RemoteFailed, match="lamella serve STORE"):
        client.models()


def test_a_full_server_is_asked_again_when_it_says(run_server: Start) -> None:
    waits: list[float] = []
    n_full = 2

    def choose(request: Generate) -> Script:
        full = QueueFull("Full.", retry_after_seconds=7)
        return Script(submit_error=full) if len(waits) < n_full else Script()

    server = run_server(lambda: FakeEngine(choose=choose))
    patience = Patience(seconds=20, on_wait=lambda _, seconds: waits.append(seconds), sleep=lambda _: None)
    with ServerClient(server.url, patience=patience) as client:
        assert "".join(client.chat(HELLO)) == "Hello world"
        assert waits == [7, 7]
        n_full = 100
        with pytest.raises(QueueFull, match="429: Full") as full:
            list(client.chat(HELLO))
        assert full.value.retry_after_seconds == 7
        assert waits == [7, 7, 7, 7]  # a third wait would be more than 20 s


class _Odd(BaseHTTPRequestHandler):
    """Answers by path what no such server would."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        answers = {
            "/no-objects/v1/models": b'{"data": [1, null]}',
            "/no-list/v1/models": b'{"data": {"id": "a"}}',
            "/none/v1/models": b'{"data": []}',
            "/foreign/v1/models": b'{"data": [{"id": "a", "object": "model"}, {"id": "a@b", "meta": {}}, {}]}',
            "/foreign/admin/variants": b'{"variants": [{"id": 1}]}',
        }
        self._say(200, answers.get(self.path, b"<html>hello</html>"))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answers = {
            "/cut/v1/chat/completions": (200, b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'),
            "/odd/v1/chat/completions": (200, b"data: 7\n\n"),
            "/bad/v1/chat/completions": (502, b"<html>bad gateway</html>"),
            "/moved/v1/chat/completions": (307, b""),
            "/foreign/admin/switch": (200, b'{"before": "a"}'),
        }
        self._say(*answers[self.path])

    def _say(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        if code == 307:
            self.send_header("Location", "http://elsewhere.example/")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("cut", RemoteFailed, "in the middle of the answer"),
        ("odd", RemoteInvalid, "none of OpenAI's"),
        ("bad", RemoteFailed, "502 Bad Gateway"),
        ("moved", RemoteInvalid, "elsewhere.example"),
    ],
)
def test_servers_of_other_kinds(tmp_path: Path, path: str, error: type[Exception], says: str) -> None:
    with serving(tmp_path, _Odd) as site, ServerClient(f"{site.url}/{path}") as client:
        with pytest.raises(error, match=says):
            list(client.chat(HELLO))
        with pytest.raises(RemoteInvalid, match="not as an OpenAI-compatible server does"):
            client.models()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no-objects", "not as an OpenAI-compatible server does"),
        ("no-list", "not as an OpenAI-compatible server does"),
        ("none", "lists no model"),
    ],
)
def test_lists_of_models_that_are_none(tmp_path: Path, path: str, says: str) -> None:
    with (
        serving(tmp_path, _Odd) as site,
        ServerClient(f"{site.url}/{path}") as client,
        pytest.raises(RemoteInvalid, match=says),
    ):
        client.models()


def test_of_a_server_that_is_none_of_ours_its_models_are_known(tmp_path: Path) -> None:
    with serving(tmp_path, _Odd) as site, ServerClient(f"{site.url}/foreign") as client:
        assert client.models() == ["a", "a@b"]
        assert client.variants() == [ServedVariant("b", None)]
        with pytest.raises(RemoteInvalid, match="not as an OpenAI-compatible server does"):
            client.switch("b")


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://a", "http://", "http://user:word@host", "http://a/?b=c"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InvalidRequest):
        ServerClient(url)


def test_keys_that_no_header_can_carry() -> None:
    with pytest.raises(InvalidRequest) as refused:
        ServerClient("http://a", "a secret\nX: y")
    assert "secret" not in str(refused.value)
