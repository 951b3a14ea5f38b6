"""``lamella`` in a process of its own, and servers started by their command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from lamella.batching.settings import EngineSettings

TIMEOUT_SECONDS = 240
SERVED = EngineSettings(store="", n_ctx=128)
"""What ``served`` starts, as far as variants are planned beside it."""


def lamella(cache: Path, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lamella", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LAMELLA_CACHE": str(cache), "LAMELLA_THREADS": "1", **environment},
    )


@contextmanager
def served(cache: Path, *arguments: str | Path) -> Iterator[tuple[str, list[str]]]:
    """URL of a server, and what it said before it listened."""
    said: list[str] = []
    with lamella(
        cache, "serve", *arguments, "--port", "0", "--context", str(SERVED.n_ctx), "--layout", "mapped"
    ) as server:
        assert server.stderr is not None
        try:
            yield _listening(server.stderr, said), said
        finally:
            server.terminate()
            server.communicate(timeout=TIMEOUT_SECONDS)


def _listening(lines: Iterable[str], said: list[str]) -> str:
    """The URL, once it listens; what comes before is kept."""
    for line in lines:
        if line.startswith("listening on "):
            return line.split()[2].removesuffix("/v1;")
        said.append(line)
    raise AssertionError("".join(said))


def ask(url: str, model: str) -> dict[str, Any]:
    """Four tokens, also of a model that would draw its end."""
    body = {"model": model, "prompt": "Once", "max_tokens": 4, "ignore_eos": True}
    return post(url, "/v1/completions", body)


def get(url: str, path: str) -> dict[str, Any]:
    with urlopen(url + path, timeout=TIMEOUT_SECONDS) as answer:
        return dict(json.load(answer))


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        return dict(json.load(answer))
