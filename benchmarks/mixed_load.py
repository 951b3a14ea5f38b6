"""Clients of every kind, good and bad, for as long as somebody lets them.

Each kind is a coroutine that does one request and raises ``Unexpected`` where the server did not do what it should.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.clients import Prompts, Stream

_REQUIRED = {"name", "age", "tags"}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": sorted(_REQUIRED),
    "additionalProperties": False,
}
MALFORMED = (
    b"{",
    b'{"prompt": 5}',
    b'{"prompt": "x", "max_tokens": -1}',
    b'{"prompt": "x", "model": "no-such-model"}',
    b'{"prompt": "x", "grammar": "root ::= ("}',
    b'{"prompt": "' + b"word " * 4000 + b'"}',
    b"\xff\xfe\x00",
    b'{"prompt": "x", "logit_bias": {"999999999": 1}}',
)
SLOW_SECONDS = 0.05
SMALL_BUFFER_BYTES = 4096


class Unexpected(Exception):
    """What the server did, and should not have done."""


@dataclass(slots=True)
class Outcomes:
    """How often each kind did what it should, and what it met instead."""

    good: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)


class MixedLoad:
    """One server's clients."""

    def __init__(self, port: int, client: httpx.AsyncClient, model: str, variants: list[str], seed: int) -> None:
        """Nothing is sent yet.

        Args:
            model: the served model's name.
            variants: to switch between, and to ask for.
        """
        self._port, self._client, self._model, self._variants = port, client, model, variants
        self._random, self._prompts = random.Random(seed), Prompts(seed)
        self.outcomes = Outcomes()

    async def run(self, should_stop: Callable[[], bool], switch_seconds: float) -> None:
        """All kinds side by side until ``should_stop``; each then ends the request it is at."""
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "short": self.short,
            "long": self.long,
            "at a variant": self.at_variant,
            "with a schema": self.with_schema,
            "cancelled": self.cancelled,
            "slow": self.slow,
        }
        faulty: dict[str, Callable[[], Awaitable[None]]] = {"malformed": self.malformed, "broken": self.broken}
        tasks = [self._repeat(kind, request, 0.0, should_stop) for kind, request in kinds.items()]
        tasks += [self._repeat(kind, request, 0.5, should_stop) for kind, request in faulty.items()]
        tasks.append(self._repeat("switch", self.switch, switch_seconds, should_stop))
        await asyncio.gather(*tasks)

    async def _repeat(
        self, kind: str, request: Callable[[], Awaitable[None]], pause_seconds: float, should_stop: Callable[[], bool]
    ) -> None:
        while not should_stop():
            try:
                await request()
                self.outcomes.good[kind] += 1
            except (Unexpected, httpx.HTTPError, OSError) as error:
                self.outcomes.bad[f"{kind}: {str(error) or type(error).__name__}"] += 1
            await asyncio.sleep(pause_seconds)

    # --- kinds -------------------------------------------------------------------------------------------------------

    async def short(self) -> None:
        body = {"prompt": self._prompts.next(60), "max_tokens": 16, "seed": self._random.randrange(2**31)}
        await self._completed("/v1/completions", body)

    async def long(self) -> None:
        stream = await Stream(self._port, self._prompts.next(2000), 300).run()
        if stream.failed or stream.n_tokens != 300:
            raise Unexpected(stream.failed or f"{stream.n_tokens} tokens of 300")

    async def at_variant(self) -> None:
        model = f"{self._model}@{self._random.choice(self._variants)}"
        await self._completed("/v1/completions", {"model": model, "prompt": self._prompts.next(100), "max_tokens": 48})

    async def with_schema(self) -> None:
        answer = await self._completed(
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": f"Somebody of this text: {self._prompts.next(100)}"}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
                "max_tokens": 120,
            },
        )
        choice = answer["choices"][0]
        if choice["finish_reason"] == "stop" and set(json.loads(choice["message"]["content"])) != _REQUIRED:
            raise Unexpected(f"not of the schema: {choice['message']['content']}")

    async def cancelled(self) -> None:
        """Leaves in the middle: while it waits, while its prompt is read, or while it writes."""
        stream = Stream(self._port, self._prompts.next(1000), 400)
        task = asyncio.create_task(stream.run())
        await asyncio.sleep(self._random.uniform(0, 1))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if stream.failed:
            raise Unexpected(stream.failed)

    async def slow(self) -> None:
        """Reads its stream more slowly than it is written, through a small buffer."""
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            plain.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(plain, ("127.0.0.1", self._port))
            await loop.sock_sendall(plain, _post({"prompt": self._prompts.next(80), "max_tokens": 200, "stream": True}))
            received = b""
            while data := await loop.sock_recv(plain, 1024):
                received = (received + data)[-2000:]
                await asyncio.sleep(SLOW_SECONDS)
        if b"data: [DONE]" not in received:
            raise Unexpected(received[-200:].decode(errors="replace"))

    async def malformed(self) -> None:
        """A body that makes no sense gets a 4xx that says so."""
        body = self._random.choice(MALFORMED)
        headers = {"Content-Type": "application/json"}
        answer = await self._client.post("/v1/completions", content=body, headers=headers)
        if not 400 <= answer.status_code < 500 or "error" not in answer.json():
            raise Unexpected(f"{answer.status_code} for {body[:40]!r}")

    async def broken(self) -> None:
        """Half a request, or no HTTP at all, and then nothing: whatever the server does, it must not keep it."""
        half = _post({"prompt": "x", "max_tokens": 4})
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._random.choice((half[:20], half[:-5], b"\x00\x01\x02 HTTP\r\n\r\n", b"")))
        await asyncio.sleep(0.05)
        writer.close()

    async def switch(self) -> None:
        body = {
            "variant": self._random.choice(self._variants),
            "cache": self._random.choice(("keep", "recompute")),
        }
        await self._answered("/admin/switch", body)

    async def _completed(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._answered(path, body)
        if not answer["choices"][0]["finish_reason"]:
            raise Unexpected("an answer without its reason to end")
        return answer

    async def _answered(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.post(path, json=body)
        if answer.status_code != 200:
            raise Unexpected(f"{answer.status_code} {answer.text[:200]}")
        document: dict[str, Any] = answer.json()
        return document


def _post(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content
