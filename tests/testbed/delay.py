"""A way that takes time: a TCP proxy that holds back what it gets, where the kernel has no netem.

    async with DelayProxy("10.100.0.2:7410", 0.005) as proxy:
        proxy.address                       # dial this instead

Only when bytes arrive changes, not how many a second; connections begin a delay later too.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class DelayProxy:
    """Passes connections on, each way ``seconds`` later.  An asynchronous context manager.

    Attributes:
        seconds: may be changed at any time.
    """

    def __init__(self, target: str, seconds: float) -> None:
        self.seconds = seconds
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                await asyncio.sleep(self.seconds)
                there, back = await asyncio.open_connection(self._host, self._port)
                await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read at once, and write each piece when its time has come."""
        loop = asyncio.get_running_loop()
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def release() -> None:
            while True:
                due, data = await held.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                writer.write(data)
                await writer.drain()
                if not data:
                    return

        releasing = asyncio.create_task(release())
        try:
            while data := await reader.read(1 << 16):
                await held.put((loop.time() + self.seconds, data))
            await held.put((loop.time() + self.seconds, b""))
            await releasing
        except OSError:
            pass
        finally:
            releasing.cancel()
            writer.close()
