"""A served cluster under streams of tokens, for tests of what it does when its machines change.

with serving(bed, store, "--layers", LAYERS) as served, Streams(served) as streams:
    streams.wait(4)
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.testbed.bed import TestBed

N_STREAMS, N_TOKENS = 4, 60
LIMIT_SECONDS = 300.0


class Served:
    """``lamella cluster serve``, a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log

    @property
    def said(self) -> str:
        """All that it has told."""
        return self._log.read_text()

    def get(self, path: str) -> tuple[int, dict[str, Any], Any]:
        """Status, document and headers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers

    @property
    def cluster(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/health")[1]["cluster"]
        return found

    @property
    def used(self) -> set[str]:
        """Machines that have layers now."""
        return {at["node"] for at in self.cluster["layers"]}

    def complete(self, n_tokens: int = N_TOKENS) -> tuple[int, dict[str, Any], Any]:
        """One completion."""
        body = {"model": "tiny", "prompt": "a b c", "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            self.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers


class Streams:
    """Completions in threads, one after the other in each, until they are stopped."""

    def __init__(self, served: Served, n_streams: int = N_STREAMS) -> None:
        self.answers: list[tuple[int, int]] = []
        self._stop = threading.Event()
        self._served = served
        self._threads = [threading.Thread(target=self._run) for _ in range(n_streams)]

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        self.wait(len(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while not self._stop.is_set():
            status, document, _ = self._served.complete()
            self.answers.append((status, document.get("usage", {}).get("completion_tokens", 0)))

    def wait(self, n_more: int) -> None:
        """Until so many more have ended."""
        goal = len(self.answers) + n_more
        wait_for(lambda: len(self.answers) >= goal)


def wait_for(condition: Callable[[], bool]) -> None:
    """Polls, counted and not timed: the machine may stand still meanwhile."""
    for _ in range(int(LIMIT_SECONDS / 0.1)):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come so far")


@contextlib.contextmanager
def serving(bed: TestBed, store: Path, *options: str) -> Iterator[Served]:
    """A served cluster; its process is the same at the end."""
    command = [
        sys.executable, "-P", "-m", "lamella", "cluster", "serve", f"{store}@large", "--folder",
        str(bed.cluster.path), "--port", "0", "--name", "tiny", "--context", "256", "--sequences", "4", "--hold", "1",
        "--links", "1000", *options,
    ]  # fmt: skip
    log = bed.path / "serve.log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_for(lambda: "http://" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            url = next(word for word in log.read_text().split() if word.startswith("http://")).rstrip("/.,;")
            yield Served(process, url.removesuffix("/v1"), log)
            assert process.poll() is None, log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_SECONDS)
