"""Harnesses of what other processes and machines send: frames, HTTP, streams of events, cluster messages."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from lamella.batching import messages as engine
from lamella.batching.frames import FrameSplitter, engine_decoder, front_decoder, settings_decoder
from lamella.batching.messages import Chat, Generate, Switch
from lamella.batching.settings import EngineSettings
from lamella.client.answers import StreamedAnswer, answer_of
from lamella.client.refusals import refusal
from lamella.client.server import SwitchDone
from lamella.cluster import messages as cluster
from lamella.cluster.certificates import Authority, new_authority, new_request
from lamella.cluster.channel import Channel
from lamella.cluster.identity import Identity
from lamella.cluster.invites import Invite
from lamella.cluster.joining import Join, Joined, NotJoined
from lamella.cluster.rpc_stream import Expand, Shorten
from lamella.core import artifacts
from lamella.core.errors import LamellaError
from lamella.remote.manifest import parse_identity, parse_variant
from lamella.remote.remote_store import RemoteStore
from lamella.remote.web import WebOptions
from lamella.serving.app import build_app
from lamella.serving.settings import FrontSettings
from lamella.serving.tool_calls import BlockReader, WholeReader
from lamella.store.founding import store_document
from tests.fakes.engine import FakeEngine, Script
from tests.fuzz.documents import NAME, tiny, variant
from tests.fuzz.harness import Harness
from tests.fuzz.mutating import JSON, MSGPACK, Form

# --- engine frames ---------------------------------------------------------------------------------------------------


def _framed(message: object) -> bytes:
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(4, "little") + data


FRAMES = Form(
    lambda data: msgspec.msgpack.decode(data[4:]),
    lambda tree: (data := MSGPACK.put_together(tree)) and len(data).to_bytes(4, "little") + data,
)


def _read_frames(decoder: Callable[[], Any]) -> Callable[[bytes, Path], None]:
    def read(data: bytes, _: Path) -> None:
        splitter: FrameSplitter[Any] = FrameSplitter(decoder())
        for at in range(0, len(data), 100):
            splitter.feed(data[at : at + 100])
        splitter.finish()

    return read


def _front_messages() -> list[bytes]:
    chat = Chat(messages=[{"role": "user", "content": "Hi"}], tools=[{"type": "function", "function": {"name": "f"}}])
    return [_framed(Generate(id=1, prompt=chat, stop=["x"])), _framed(Switch(id=2, variant=NAME))]


def _engine_messages() -> list[bytes]:
    return [
        _framed(engine.Refused(id=1, why="invalid", message="no")),
        _framed(engine.Finished(id=1, reason="stop", prompt_tokens=1, generated_tokens=2, text="x")),
    ]


# --- HTTP ------------------------------------------------------------------------------------------------------------

_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/admin/switch",
    "/admin/control", "/admin/prepare",
)  # fmt: skip
_BODIES = (
    b'{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "stream": true, '
    b'"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "logprobs": true, "n": 2}',
    b'{"model": "tiny", "prompt": ["a", "b"], "max_tokens": 4, "logit_bias": {"5": -1.5}, "stop": ["x"], "echo": true}',
    b'{"model": "tiny", "input": ["a", "b"], "encoding_format": "base64"}',
    b'{"content": "Hi", "prompt": "Hi", "text": "Hi"}',
    b'{"tokens": [1, 2]}',
    b'{"variant": "small", "recompute_cache": false}',
    b'{"on": true, "objectives": {"class": {"a": {"max_kl": 0.1}}}}',
    b'{"variant": "small"}',
)


class ServerFault(AssertionError):
    """The server answered with its own fault."""


@functools.cache
def _app() -> Any:
    return build_app(FakeEngine(Script(pieces=["Hello", " world"])), FrontSettings())


def _ask(data: bytes, _: Path) -> None:
    """One body, to the route that its first byte names; the seeds go to the routes that they are for."""
    path, body = _PATHS[data[0] % len(_PATHS)] if data else _PATHS[0], data[1:]

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(_app(), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=body, headers={"Content-Type": "application/json"})

    answer = asyncio.run(ask())
    if answer.status_code >= 500 and answer.status_code != 503:
        raise ServerFault(f"{path}: {answer.status_code} {answer.text[:500]}")


_ROUTED = Form(lambda data: [data[0], msgspec.json.decode(data[1:])], lambda tree: _routed(tree))


def _routed(tree: Any) -> bytes:
    if not isinstance(tree, list) or len(tree) != 2 or not isinstance(tree[0], int):
        raise ValueError("no route any more")
    return bytes([tree[0] % 256]) + JSON.put_together(tree[1])


_EVENTS = (
    b'data: {"model": "m", "choices": [{"delta": {"content": "Hi"}, "finish_reason": null}]}\n\n: alive\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}\n\ndata: [DONE]\n\n',
    b'data: {"error": {"message": "the engine is gone", "type": "server_error"}}\n\n',
)


class _Answered:
    """A request that was answered already."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    def __enter__(self) -> httpx.Response:
        return self._response

    def __exit__(self, *_: object) -> None:
        self._response.close()


def _hear(data: bytes, _: Path) -> None:
    """The same bytes as a stream of events, as a document, and as a refusal."""
    request = httpx.Request("POST", "http://localhost/v1/chat/completions")
    refused = httpx.Response(
        400 + len(data) % 120, content=data, headers={"Retry-After": str(len(data))}, request=request
    )
    str(refusal(refused, has_key=False))
    readers: tuple[Callable[[], object], ...] = (
        lambda: "".join(StreamedAnswer(_Answered(httpx.Response(200, content=data, request=request)))),
        lambda: answer_of(httpx.Response(200, content=data, request=request), SwitchDone),
    )
    for read in readers:
        try:
            read()
        except LamellaError as error:
            str(error)


def _call_tools(data: bytes, _: Path) -> None:
    text = data.decode("utf-8", "replace")
    for reader in (BlockReader(), WholeReader()):
        for at in range(0, len(text), 7):
            reader.feed(text[at : at + 7])
        reader.finish()


# --- remote stores ---------------------------------------------------------------------------------------------------

_HASTY = WebOptions(n_tries=1, first_pause_s=0.0, longest_pause_s=0.0)


def _answer_of(data: bytes) -> httpx.Response:
    """Status (two bytes), header lines up to an empty one, and a body."""
    head, _, body = data[2:].partition(b"\n\n")
    lines = [line.partition(b":")[::2] for line in head.split(b"\n")]
    headers = [(name.strip(), value.strip()) for name, value in lines if name.strip().isalnum() and value.isascii()]
    headers = [(name, value.translate(None, b"\r\0")) for name, value in headers]
    return httpx.Response(100 + int.from_bytes(data[:2], "big") % 500, headers=headers, stream=httpx.ByteStream(body))


def _visit(data: bytes, _: Path) -> None:
    """A remote store that says this to whatever it is asked."""
    with RemoteStore("http://localhost/store", "token", _HASTY) as remote:
        remote.web._client._transport = httpx.MockTransport(lambda request: _answer_of(data))
        remote.web._client._mounts = {}
        asked: tuple[Callable[[], object], ...] = (
            lambda: remote.variant_names(),
            lambda: remote.variant(NAME),
            lambda: remote.check("ab" * 32, 100),
            lambda: b"".join(remote.fetch("ab" * 32, 100)),
            lambda: b"".join(remote.fetch("ab" * 32, 100, 50)),
        )
        for ask in asked:
            try:
                ask()
            except LamellaError as error:
                str(error)


def _answers() -> list[bytes]:
    ok, partial, moved = ((code - 100).to_bytes(2, "big") for code in (200, 206, 302))
    return [
        ok + b"ETag: x\n\n" + store_document(tiny()[1].spec.identity),
        ok + b'\n\n{"variants": [{"name": "v"}]}',
        ok + b"\n\n" + bytes(100),
        partial + b"Content-Range: bytes 50-99/100\n\n" + bytes(50),
        moved + b"Location: http://elsewhere/\n\n",
        ok + b"Content-Encoding: gzip\n\nxx",
    ]


# --- clusters --------------------------------------------------------------------------------------------------------

_KINDS: tuple[Any, ...] = (
    cluster.Purpose, Join, Joined | NotJoined, cluster.Described | cluster.Refused, cluster.Begun, cluster.Pong,
    cluster.Blob, cluster.Dial | cluster.Brought,
)  # fmt: skip


def _receive(data: bytes, _: Path) -> None:
    """Messages of the kind that the first byte names, until there are no more bytes."""

    async def receive() -> None:
        channel = Channel()
        channel.data_received(data[1:])
        channel.connection_lost(None)
        while len(channel._waiting) or not data:
            await channel.receive(_KINDS[data[0] % len(_KINDS)] if data else _KINDS[0], 1)

    asyncio.run(receive())


def _sent(kind: int, message: object) -> bytes:
    body = msgspec.json.encode(message)
    return bytes([kind]) + len(body).to_bytes(4, "big") + body


SENT = Form(
    lambda data: [data[0], msgspec.json.decode(data[5:])],
    lambda tree: (body := _routed(tree)) and body[:1] + (len(body) - 1).to_bytes(4, "big") + body[1:],
)


def _cluster_messages() -> list[bytes]:
    shard = variant().shards[0]
    report = cluster.NodeReport("0", "0.3.36", "cpu", 2, 1 << 30, 1 << 29, "machine", [], {"Q8_0": cluster.Speed(1, 2)})
    return [
        _sent(0, cluster.Begin(2, [shard])),
        _sent(0, cluster.Bring(tiny()[1].spec.identity, [shard], "token")),
        _sent(1, Join(b"0" * 16, new_request()[1], "10.0.0.1:7410")),
        _sent(2, Joined(f"lamella://{'0' * 32}/node/laptop", b"a", b"b")),
        _sent(3, cluster.Described(report, 1, 2, 3)),
        _sent(4, cluster.Begun("session", [b"0" * 32])),
    ]


@functools.cache
def _authority() -> Authority:
    return new_authority("0" * 32)


def _sign(data: bytes, _: Path) -> None:
    _authority().sign(data, Identity("0" * 32, "node", "laptop"))


def _pass_on(data: bytes, _: Path) -> None:
    for make in (lambda: Shorten({b"0" * 32}), lambda: Expand(lambda digest: None)):
        passing = make()
        try:
            for at in range(0, len(data), 50):
                for piece in passing(data[at : at + 50]):
                    bytes(piece)
        except LamellaError as error:
            str(error)


def _rpc_requests() -> list[bytes]:
    def request(command: int, size: int) -> bytes:
        return bytes([command]) + size.to_bytes(8, "little") + bytes(size)

    return [request(6, 305 + 2000) + request(1, 8), request(0xC5, 305 + 32)]


HARNESSES = (
    Harness("front-frames", ("batching.frames",), _front_messages, _read_frames(front_decoder), FRAMES,
            ("batching.messages",)),
    Harness("engine-frames", ("batching.frames",), _engine_messages, _read_frames(engine_decoder), FRAMES,
            ("batching.messages",)),
    Harness(
        "settings-frame", ("batching.frames",), lambda: [_framed(EngineSettings(store="s"))],
        _read_frames(settings_decoder), FRAMES, ("batching.settings",),
    ),
    Harness(
        "http-bodies", ("serving.openai.bodies", "serving.openai.parameters", "serving.openai.chat",
                        "serving.openai.completions", "serving.openai.embeddings", "serving.admin", "serving.tokens"),
        lambda: [bytes([route]) + body for route, body in enumerate(_BODIES)], _ask, _ROUTED,
    ),
    Harness("client", ("client.answers", "client.refusals"), lambda: _EVENTS, _hear),
    Harness(
        "tool-calls", ("serving.tool_calls",),
        lambda: [b'a<tool_call>{"name": "f", "arguments": {"a": [1, "}"]}}</tool_call>b', b'{"name": "f"}'],
        _call_tools,
    ),
    Harness(
        "remote-identity", ("remote.manifest",), lambda: [store_document(tiny()[1].spec.identity)],
        lambda data, _: parse_identity(data, "fuzz"), JSON, ("store.founding", "core.model"),
    ),
    Harness(
        "remote-variant", ("remote.manifest",), lambda: [artifacts.to_json(variant())],
        lambda data, _: parse_variant(data, NAME, tiny()[1].spec.identity, "fuzz"), JSON,
        ("core.artifacts", "core.model"),
    ),
    Harness("remote-answers", ("remote.remote_store", "remote.web"), _answers, _visit),
    Harness(
        "cluster-messages", ("cluster.channel",), _cluster_messages, _receive, SENT,
        ("cluster.messages", "cluster.joining"),
    ),
    Harness(
        "invite", ("cluster.invites", "cluster.addresses"),
        lambda: [Invite("10.0.0.1:7400", b"0" * 32, b"1" * 16).token.encode()],
        lambda data, _: Invite.parse(data.decode("utf-8", "replace")),
    ),
    Harness(
        "member-name", ("cluster.identity",), lambda: [f"lamella://{'0' * 32}/node/laptop".encode()],
        lambda data, _: Identity.parse(data.decode("utf-8", "replace")),
    ),
    Harness("signing-request", ("cluster.certificates",), lambda: [new_request()[1]], _sign),
    Harness("rpc-stream", ("cluster.rpc_stream",), _rpc_requests, _pass_on),
)  # fmt: skip
