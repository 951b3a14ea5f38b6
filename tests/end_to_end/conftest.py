"""A live server with SmolLM2 at two precisions, started as its users start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ADMIN_KEY = "admin-key-of-tests"
PROGRAM = (sys.executable, "-m", "lamella")


@dataclass(frozen=True)
class LiveServer:
    """Where it is, what it serves, and its key."""

    url: str
    store: Path
    variants: tuple[str, ...]
    key: str

    def environment(self) -> dict[str, str]:
        """For clients that read OpenAI's variables."""
        return {**os.environ, "OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": self.key}


@pytest.fixture(scope="module")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("live")
    store = folder / "store"
    build = [*PROGRAM, "build", "smollm2", str(store), "--precision", "int8,int4"]
    subprocess.run(build, check=True, capture_output=True)
    options = ["--port", "0", "--context", "512", "--sequences", "4", "--layout", "mapped", "--pooling", "mean"]
    environment = {**os.environ, "LAMELLA_CACHE": str(folder / "cache"), "LAMELLA_API_KEYS": f"admin:{ADMIN_KEY}"}
    command = [*PROGRAM, "serve", f"{store}@uniform-int8", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as server:
        assert server.stderr is not None
        line = server.stderr.readline().decode()
        assert line.startswith("listening on "), line
        url = line.split()[2].removesuffix(";").removesuffix("/v1")
        yield LiveServer(url, store, ("uniform-int8", "uniform-int4"), ADMIN_KEY)
        server.terminate()
        assert server.wait(60) == 0
