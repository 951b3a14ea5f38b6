"""``lamella serve --memory`` on SmolLM2: what the engine takes is measured all the time, while it is switched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from lamella.core.units import MIB

pytestmark = pytest.mark.slow
PROGRAM = [sys.executable, "-m", "lamella"]
N_SWITCHES = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "store"
    build = [*PROGRAM, "build", "smollm2", str(folder), "--precision", "int8,int6,int4"]
    subprocess.run(build, check=True, capture_output=True)
    return folder


def _options(memory_mib: int, layout: str) -> list[str]:
    return f"--port 0 --context 1024 --sequences 4 --layout {layout} --memory {memory_mib}MiB".split()


@contextmanager
def _server(store: Path, memory_mib: int, layout: str) -> Iterator[str]:
    """Its URL."""
    command = [*PROGRAM, "serve", str(store), *_options(memory_mib, layout)]
    environment = {**os.environ, "LAMELLA_CACHE": str(store.parent / "cache"), "LAMELLA_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as server:
        assert server.stderr is not None
        line = server.stderr.readline().decode()
        assert line.startswith("listening on "), line
        try:
            yield line.split()[2].removesuffix(";").removesuffix("/v1")
        finally:
            server.terminate()
        assert server.wait(60) == 0


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return dict(json.load(answer))


def _taken_bytes(pid: int, folder: Path) -> int:
    """Private memory of a process, and pages of a store that it has mapped; each page of a file once."""
    private = 0
    is_ours = False
    pages: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path = line.rpartition(" ")[2]
            is_ours = path.startswith(str(folder.resolve()))
        elif line.startswith("Anonymous:"):
            private += int(line.split()[1]) * 1024
        elif is_ours and line.startswith("Rss:"):
            pages[path] = max(pages.get(path, 0), int(line.split()[1]) * 1024)
    return private + sum(pages.values())


class Watch:
    """Looks at a process again and again until it is left; remembers the most."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder, self.most_bytes, self.n_looks = pid, folder, 0, 0
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._has_ended.wait(0.03):  # more often would hold up a process that maps and unmaps
            self.most_bytes = max(self.most_bytes, _taken_bytes(self.pid, self.folder))
            self.n_looks += 1

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()


@pytest.mark.parametrize("layout", ["mapped", "auto"])
def test_many_switches_under_load_stay_below_the_ceiling(store: Path, layout: str) -> None:
    """KV cache 90 MiB, int8 138 MiB, int4 88 MiB: both variants, which share 30 MiB, do not fit."""
    ceiling = 340
    with _server(store, ceiling, layout) as url:
        with urlopen(f"{url}/admin/status", timeout=60) as answer:
            engine = json.load(answer)["engine"]
        assert engine["variant"] == "uniform-int8"
        names = [v["name"] for v in engine["variants"]]
        with Watch(engine["pid"], store) as watch:
            writers = [threading.Thread(target=_write, args=(url, i)) for i in range(4)]
            for writer in writers:
                writer.start()
            reports = [_post(f"{url}/admin/switch", {"variant": names[-1 - i % 3]}) for i in range(N_SWITCHES)]
            for writer in writers:
                writer.join()
        assert max(r["n_steps"] for r in reports) == 30  # layers; embedding and head are shared
        assert watch.n_looks > 50
        assert watch.most_bytes <= ceiling * MIB
        assert watch.most_bytes > 0.8 * ceiling * MIB  # or this measured nothing


def _write(url: str, number: int) -> None:
    with urlopen(f"{url}/v1/models", timeout=60) as answer:
        model = json.load(answer)["data"][0]["id"]
    for i in range(3):
        prompt = f"{number} {i} " + "the history of the world " * 20
        body = {"model": model, "prompt": prompt, "max_tokens": 40, "seed": number, "ignore_eos": True}
        assert _post(f"{url}/v1/completions", body)["usage"]["completion_tokens"] == 40


def test_a_ceiling_that_nothing_fits_says_how_many_cells_would_and_they_do(store: Path) -> None:
    command = [*PROGRAM, "serve", str(store), *_options(200, "mapped")]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 11
    found = re.search(r"'uniform-int4',? needs .* ceiling is 200 MiB.*--cells (\d+)", failed.stderr)
    assert found, failed.stderr
    cells = found.group(1)
    with subprocess.Popen(
        [*command, "--cells", cells, "--context", cells], stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        assert server.stderr.readline().startswith("listening on ")
        server.terminate()
