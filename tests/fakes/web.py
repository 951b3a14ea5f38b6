"""Web servers on loopback ports: static files only, with ranges, with PUT, and the product's own; tests bend them."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lamella.remote.serving import StoreServer
from lamella.store.store import Store


class Site(ThreadingHTTPServer):
    """A server for a folder, and what it saw.

    Attributes:
        sent: bytes of bodies sent, by path.
        asked: (method, path, headers) of every request, in order.
    """

    daemon_threads = True

    def __init__(self, folder: Path, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.folder = folder
        self.sent: Counter[str] = Counter()
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def sent_shard_bytes(self) -> int:
        return sum(n for path, n in self.sent.items() if path.startswith("/shards/"))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests hang up in the middle; that is no news."""


class Static(SimpleHTTPRequestHandler):
    """Python's own file server: no ranges, no ETag."""

    server: Site

    def __init__(self, request: Any, address: Any, server: Site) -> None:
        super().__init__(request, address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path, dict(self.headers)))
        self.get()

    def do_HEAD(self) -> None:
        self.server.asked.append(("HEAD", self.path, dict(self.headers)))
        self.head()

    def get(self) -> None:
        super().do_GET()

    def head(self) -> None:
        super().do_HEAD()

    def say(self, code: int, **headers: str) -> None:
        """Answer without a body."""
        self.send_response(code)
        for key, value in {"Content-Length": "0", **headers}.items():
            self.send_header(key, value)
        self.end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while data := source.read(1 << 16):
            outputfile.write(data)
            self.server.sent[self.path] += len(data)

    def log_message(self, *_: object) -> None:
        pass


class Ranged(Static):
    """Ranges and ETags; whatever it answers passes through ``answer``, which tests override."""

    def get(self) -> None:
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        self.answer(file.read_bytes())

    def answer(self, data: bytes) -> None:
        etag = self.etag(data)
        start = self.start() if self.headers.get("If-Range", etag) == etag else 0
        headers = {"ETag": etag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, data[start:], headers)

    def etag(self, data: bytes) -> str:
        return f'"{len(data)}"'

    def start(self) -> int:
        said = self.headers.get("Range", "bytes=0-")
        return int(said.removeprefix("bytes=").removesuffix("-"))

    def send(self, code: int, body: bytes, headers: dict[str, str], n_before_cut: int | None = None) -> None:
        """Answer; ``n_before_cut`` ends the connection after so many bytes of the body."""
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        part = body if n_before_cut is None else body[:n_before_cut]
        self.wfile.write(part)
        self.server.sent[self.path] += len(part)
        if n_before_cut is not None:
            self.close_connection = True


class Putting(Static):
    """Takes ``PUT`` as WebDAV does: 409 where the folder is missing, until ``MKCOL`` made it."""

    def do_PUT(self) -> None:
        self.server.asked.append(("PUT", self.path, dict(self.headers)))
        self.put(self.rfile.read(int(self.headers["Content-Length"])))

    def put(self, data: bytes) -> None:
        file = self.server.folder / self.path.lstrip("/")
        if not file.parent.is_dir():
            self.say(409)
            return
        file.write_bytes(data)
        self.say(201)

    def do_MKCOL(self) -> None:
        self.server.asked.append(("MKCOL", self.path, dict(self.headers)))
        self.make_folder()

    def make_folder(self) -> None:
        folder = self.server.folder / self.path.strip("/")
        there = folder.is_dir()
        folder.mkdir(exist_ok=True)
        self.say(405 if there else 201)


@contextlib.contextmanager
def serving(folder: Path, handler: type[BaseHTTPRequestHandler]) -> Iterator[Site]:
    with Site(folder, handler) as site, _in_thread(lambda: site.serve_forever(poll_interval=0.01), site.shutdown):
        yield site


@contextlib.contextmanager
def serving_store(folder: Path, token: str | None = None, host: str = "127.0.0.1") -> Iterator[StoreServer]:
    """The product's own server."""
    with StoreServer(Store.open(folder), host, 0, token) as server, _in_thread(server.run, server.stop):
        yield server


@contextlib.contextmanager
def _in_thread(run: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()
