"""A client that keeps what came and when, for benchmarks of what a server does to running streams."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import numpy as np

from benchmarks.common import DATA

LONGEST_ANSWER_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event brought.

    Attributes:
        at: when, on the client's clock.
        token: as the server shows it, and not the text that became certain with it; "" without ``logprobs``.
        margin: by how much the likeliest token's log-probability is above the second's; infinite without ``logprobs``.
    """

    text: str
    at: float
    token: str = ""
    margin: float = np.inf


class Stream:
    """One greedy completion that does not end early.

    Attributes:
        sent: when the request went out; 0 before.
        pieces: what came; stays readable when ``run`` is cancelled.
        n_tokens: by the server's own count; 0 before the end.
        failed: what went wrong, or "".
    """

    def __init__(self, port: int, prompt: str | list[int], n_tokens: int, **fields: Any) -> None:
        """Nothing is sent yet.

        Args:
            prompt: text or token ids.
            fields: of the request, beside or instead of the usual ones.
        """
        self._port = port
        self._body = {
            "prompt": prompt,
            "max_tokens": n_tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        self.sent = 0.0
        self.pieces: list[Piece] = []
        self.n_tokens = 0
        self.failed = ""

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Begin and end of each time between two pieces."""
        return [(a.at, b.at) for a, b in pairwise(self.pieces)]

    async def run(self, on_piece: Callable[[], object] = lambda: None) -> Stream:
        """Send it and read to its end; returns itself.  A failure is noted, not raised."""
        self.sent = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**22)
            try:
                writer.write(_request(self._body))
                self.failed = await self._read(reader, on_piece)
            finally:
                writer.close()
        except OSError as error:
            self.failed = str(error) or type(error).__name__
        return self

    async def _read(self, reader: asyncio.StreamReader, on_piece: Callable[[], object]) -> str:
        """Read the answer; returns what went wrong, or ""."""
        status = await reader.readline()
        if b" 200 " not in status:
            return status.decode(errors="replace").strip() or "the connection was closed"
        async for line in reader:
            if line.startswith(b"data: [DONE]"):
                return "" if self.n_tokens else "the end came without a count of tokens"
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return str(event["error"])
            self.n_tokens = (event.get("usage") or {}).get("completion_tokens", self.n_tokens)
            if event["choices"] and (event["choices"][0]["text"] or event["choices"][0].get("logprobs")):
                self.pieces.append(_piece(event["choices"][0]))
                on_piece()
        return "the stream broke off"


def _request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content


def _piece(choice: dict[str, Any]) -> Piece:
    now, logprobs = time.perf_counter(), choice.get("logprobs")
    if not logprobs:
        return Piece(choice["text"], now)
    best, second, *_ = [*sorted(logprobs["top_logprobs"][0].values(), reverse=True), -np.inf]
    return Piece(choice["text"], now, "".join(logprobs["tokens"]), float(best - second))


async def write_all(port: int, prompts: Sequence[str], n_tokens: int, **fields: Any) -> list[Stream]:
    """Several at once; none may fail."""
    streams = [Stream(port, prompt, n_tokens, **fields) for prompt in prompts]
    return succeeded(await asyncio.gather(*(stream.run() for stream in streams)))


def succeeded(streams: list[Stream]) -> list[Stream]:
    """The streams, unless one failed."""
    for stream in streams:
        if stream.failed:
            raise SystemExit(f"a request failed: {stream.failed}")
    return streams


def admin(port: int) -> httpx.AsyncClient:
    """For the other routes of our server."""
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LONGEST_ANSWER_SECONDS)


async def status(client: httpx.AsyncClient) -> dict[str, Any]:
    """``/admin/status``."""
    answer = await client.get("/admin/status")
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document


class Prompts:
    """Pieces of a text, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._text = (DATA / "wikitext2" / "wiki.test.raw").read_text()
        self._random = random.Random(seed)

    def next(self, n_characters: int) -> str:
        start = self._random.randrange(len(self._text) - n_characters)
        return self._text[start : start + n_characters]

    def several(self, n: int, n_characters: int) -> list[str]:
        return [self.next(n_characters) for _ in range(n)]


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """``p50``, ``p99`` and ``max``, in milliseconds; empty where there is nothing."""
    if not seconds:
        return {}
    values = np.percentile(np.asarray(seconds) * 1e3, [50, 99, 100])
    return {name: round(float(value), 2) for name, value in zip(("p50", "p99", "max"), values, strict=True)}
