"""Two servers on one file, ours and llama-server, and a client that costs little: it shares the cores with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rival
from lamella.core.cores import usable_cores


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed completion, as its client saw it.

    Attributes:
        sent: when the request went out, on the client's clock.
        times: when each piece of text came.
        n_tokens: tokens written, by the server's own count.
        failed: what went wrong, or "".
    """

    sent: float
    times: list[float]
    n_tokens: int
    failed: str = ""

    @property
    def first_token_seconds(self) -> float:
        return self.times[0] - self.sent

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first."""
        return (self.n_tokens - 1) / (self.times[-1] - self.times[0])

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


@contextlib.contextmanager
def ours(store: Path, variant: str, *options: object, n_ctx: int, n_sequences: int, log: Path) -> Iterator[int]:
    """``lamella serve``; gives its port."""
    port = free_port()
    command = [sys.executable, "-m", "lamella", "serve", f"{store}@{variant}", "--port", port]
    command += ["--context", n_ctx, "--sequences", n_sequences, *options]
    with _running(command, port, "/ready", log):
        yield port


@contextlib.contextmanager
def theirs(file: Path, *options: object, n_ctx: int, n_sequences: int, log: Path) -> Iterator[int]:
    """``llama-server`` with as many threads, sequences and cells; gives its port."""
    port = free_port()
    command = [rival.tool("llama-server"), "-m", file, "--port", port, "-t", usable_cores(), "--log-disable"]
    command += ["-c", n_ctx * n_sequences, "-np", n_sequences, *options]
    with _running(command, port, "/health", log):
        yield port


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: Sequence[object], port: int, ready: str, log: Path) -> Iterator[None]:
    with log.open("ab") as output:
        process = subprocess.Popen([str(c) for c in command], stdout=output, stderr=output)
    try:
        wait_until_ready(process, command, port, ready, log)
        yield
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(
    process: subprocess.Popen[bytes], command: Sequence[object], port: int, path: str, log: Path
) -> None:
    """Poll until the server answers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(
                f"{' '.join(map(str, command))} ended with {process.returncode}:\n{log.read_text()[-2000:]}"
            )
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2):
            return
        time.sleep(0.1)
    raise SystemExit(f"{' '.join(map(str, command))} does not answer:\n{log.read_text()[-2000:]}")


async def complete(port: int, prompt: str, n_tokens: int, **fields: Any) -> Answer:
    """One greedy completion that does not end early, streamed."""
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": n_tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    sent = time.perf_counter()
    times: list[float] = []
    usage = 0
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        async for line in reader:
            if not line.startswith(b"data: "):
                if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                    return Answer(sent, times, 0, line.decode().strip())
                continue
            if b'"text":""' not in line and b'"text"' in line:
                times.append(time.perf_counter())
            if b'"completion_tokens"' in line:
                usage = json.loads(line[6:])["usage"]["completion_tokens"]
            if line.startswith(b"data: [DONE]"):
                break
            if b'"error"' in line[:20]:
                return Answer(sent, times, usage, line.decode().strip())
        writer.close()
    except OSError as error:
        return Answer(sent, times, usage, str(error) or type(error).__name__)
    return Answer(sent, times, usage, "" if usage else "the stream broke off")


async def all_at_once(port: int, prompts: Sequence[str], n_tokens: int) -> list[Answer]:
    """Several completions side by side."""
    return list(await asyncio.gather(*(complete(port, p, n_tokens) for p in prompts)))


async def by_arrival(port: int, prompts: Sequence[str], times: Sequence[float], n_tokens: int) -> list[Answer]:
    """Completions that begin at given seconds from now, whether earlier ones have ended or not."""

    async def later(prompt: str, at: float) -> Answer:
        await asyncio.sleep(at)
        return await complete(port, prompt, n_tokens)

    return list(await asyncio.gather(*(later(p, t) for p, t in zip(prompts, times, strict=True))))


def checked(answers: Sequence[Answer]) -> Sequence[Answer]:
    """The answers, unless one failed."""
    for answer in answers:
        if answer.failed:
            raise SystemExit(f"a request failed: {answer.failed}")
    return answers
