"""An RPC server process that is kept alive: one that ended is replaced when it is wanted again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections import deque

from lamella.cluster.addresses import LOOPBACK
from lamella.cluster.channel import Channel
from lamella.core.errors import RemoteFailed
from lamella.serving.restarts import GiveUp, RestartHistory, RestartLimits, decide

RPC_COMMAND = (sys.executable, "-P", "-m", "lamella.cluster.rpc_process")
START_SECONDS = 60.0
STOP_SECONDS = 5.0
FRUITFUL_SECONDS = 5.0
"""A server that lived for so long was not ended by its start."""
_POLL_SECONDS = 0.02


class RpcServer:
    """An RPC server on a loopback port of its own.

    Attributes:
        n_starts: processes started so far.
    """

    def __init__(self, n_threads: int, limits: RestartLimits | None = None) -> None:
        """Nothing is started yet."""
        self.n_starts = 0
        self._n_threads, self._limits = n_threads, limits or RestartLimits(n_fruitless=4)
        self._history = RestartHistory()
        self._process: asyncio.subprocess.Process | None = None
        self._port, self._started = 0, 0.0
        self._ended: float | None = None
        self._starting, self._is_closed = asyncio.Lock(), False
        self._lines: deque[str] = deque(maxlen=10)
        self._reader: asyncio.Task[None] | None = None

    async def connect(self) -> Channel:
        """A connection to the server, which is started first where none runs.

        Raises:
            RemoteFailed: it does not start, or has ended too often.
        """
        end = time.monotonic() + START_SECONDS
        while True:
            async with self._starting:
                if self._is_closed:
                    raise RemoteFailed("the session has ended")
                if self._process is None or self._process.returncode is not None:
                    await self._start()
            with contextlib.suppress(OSError):  # it does not listen yet
                _, channel = await asyncio.get_running_loop().create_connection(Channel, LOOPBACK, self._port)
                return channel
            if time.monotonic() >= end:
                raise RemoteFailed(f"the RPC server does not listen after {START_SECONDS:g} s")
            await asyncio.sleep(_POLL_SECONDS)

    async def _start(self) -> None:
        if self._process is not None:
            decision = decide(
                self._history,
                self._limits,
                now=time.monotonic(),
                was_fruitful=(self._ended or time.monotonic()) - self._started >= FRUITFUL_SECONDS,
            )
            if isinstance(decision, GiveUp):
                last = "; ".join(self._lines) or f"exit code {self._process.returncode}"
                raise RemoteFailed(f"no RPC server can be kept up: {decision.reason}; its last words: {last}")
            self._history = decision.history
            await asyncio.sleep(decision.pause_seconds)
        self._port, self._started, self._ended = _free_port(), time.monotonic(), None
        try:
            self._process = await asyncio.create_subprocess_exec(
                *RPC_COMMAND,
                str(self._port),
                str(self._n_threads),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for the agent; uvloop knows no process_group
            )
        except OSError as error:
            raise RemoteFailed(f"no process can be started: {error}") from None
        self.n_starts += 1
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """To the end of its output: a process whose pipe is full stands still."""
        assert process.stdout is not None  # it is a pipe
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line longer than anybody wants to read; the stream has let go of it
                continue
            if not line:
                break
            self._lines.append(line.decode(errors="replace").rstrip())
        await process.wait()
        self._ended = time.monotonic()  # it may be long until the next one is wanted

    @property
    def pid(self) -> int | None:
        """Of the process that runs; None where none does."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def close(self) -> None:
        """End the process, and start no other.  Where it is cancelled, it can be called again."""
        self._is_closed = True
        async with self._starting:  # who is starting one has it
            process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if self._reader is not None:  # reads to the end of its output, and awaits its own
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await asyncio.shield(self._reader)


def _free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
