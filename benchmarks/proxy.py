"""The rival way to change a model's precision: llama-server, restarted behind a proxy that keeps the address.

The proxy passes bytes on.  While no server runs it holds new connections back.  What is under way when a server is
ended breaks off (``cut``), or the proxy waits for it and holds all that is new (``drain``).
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from pathlib import Path
from typing import Self

from benchmarks import rival, servers
from lamella.core.cores import usable_cores


class RestartingProxy:
    """One address, one llama-server behind it at a time.

    Attributes:
        port: where it listens.
        n_delayed: connections that were held back.
        restart_seconds: of each change, from the wish until the new server answers.
    """

    def __init__(self, n_ctx: int, n_sequences: int, log: Path, *, drains: bool) -> None:
        """Use it with ``async with``; nothing is started before ``change``."""
        self._n_ctx, self._n_sequences, self._log, self._drains = n_ctx, n_sequences, log, drains
        self._behind: subprocess.Popen[bytes] | None = None
        self._behind_port = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._is_ready = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._n_open = self.n_delayed = self.port = 0
        self.restart_seconds: list[float] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0, limit=2**22)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.to_thread(self._end)

    async def change(self, file: Path) -> None:
        """End the server, and start one with another file; returns when that answers."""
        began = time.perf_counter()
        self._is_ready.clear()
        if self._drains:
            await self._is_empty.wait()
        await asyncio.to_thread(self._restart, file)
        self._is_ready.set()
        self.restart_seconds.append(time.perf_counter() - began)

    def _restart(self, file: Path) -> None:
        self._end()
        self._behind_port = servers.free_port()
        command = [rival.tool("llama-server"), "-m", file, "--port", self._behind_port, "-t", usable_cores()]
        command += ["-c", self._n_ctx * self._n_sequences, "-np", self._n_sequences, "--log-disable"]
        with self._log.open("ab") as output:
            self._behind = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output)
        servers.wait_until_ready(self._behind, command, self._behind_port, "/health", self._log)

    def _end(self) -> None:
        """Kill it: asked to end, llama-server waits for streams, and those that must end have ended."""
        if self._behind is not None:
            self._behind.kill()
            self._behind.wait()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass_on(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its last."""
        try:
            while not self._is_ready.is_set():
                self.n_delayed += 1
                await self._is_ready.wait()
            self._count(1)
            try:
                with contextlib.suppress(OSError):
                    await self._join(reader, writer)
            finally:
                self._count(-1)
        finally:
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._behind_port, limit=2**22)
        ways = [asyncio.create_task(_copy(reader, behind_writer)), asyncio.create_task(_copy(behind_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)  # who leaves on one side leaves on the other
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            behind_writer.close()

    def _count(self, change: int) -> None:
        self._n_open += change
        if self._n_open:
            self._is_empty.clear()
        else:
            self._is_empty.set()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
