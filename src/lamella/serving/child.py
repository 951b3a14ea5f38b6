"""One engine process as the front sees it, from its start until nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Self, cast

from lamella.batching.frames import FrameProtocol, engine_decoder
from lamella.batching.messages import PROTOCOL_VERSION, EngineMessage, Failed, FrontMessage, Hello, Stop
from lamella.batching.settings import EngineSettings
from lamella.core.signals import signal_name

ENGINE_COMMAND = (sys.executable, "-P", "-m", "lamella.batching.process")
"""``-P``: a file in the folder where the server was started must not take the place of a library."""

N_LAST_LINES = 20
_LONGEST_LINE_BYTES = 1 << 14
_EXIT_SECONDS = 2.0
"""How long a process may take to end after it has closed its connection."""
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.001, 0.05


class LastLines(asyncio.Protocol):
    """The output of a process: every line to whom it may concern, and the last ones kept.

    Attributes:
        lines: the last ones.
        has_ended: set when nothing will follow.
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.lines: deque[str] = deque(maxlen=N_LAST_LINES)
        self.has_ended = asyncio.Event()
        self._on_line = on_line
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > _LONGEST_LINE_BYTES:
            self._take(self._rest)
            self._rest = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        if self._rest:
            self._take(self._rest)
        self.has_ended.set()

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self.lines.append(text)
        self._on_line(text)


class EngineChild:
    """A process that was started.  Whoever has one must await ``ended`` or ``stop`` some time.

    Attributes:
        pid: its number.
    """

    def __init__(self, process: subprocess.Popen[bytes], receive: Callable[[EngineMessage], None]) -> None:
        """Use ``EngineChild.start``."""
        self.pid = process.pid
        self._process, self._receive = process, receive
        self._hello: asyncio.Future[Hello | None] = asyncio.get_running_loop().create_future()
        self._has_closed = asyncio.Event()
        self._channel = FrameProtocol(engine_decoder(), self._hear, self._closed)
        self._output: LastLines | None = None
        self._output_transport: asyncio.BaseTransport | None = None
        self._why_killed = self._last_words = ""

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        settings: EngineSettings,
        receive: Callable[[EngineMessage], None],
        on_line: Callable[[str], None],
    ) -> Self:
        """Start a process and give it its settings.

        Args:
            command: its command line, to which the number of its end of the connection is added.
            receive: gets its messages but for the first and last words (``Hello``, ``Failed``).
            on_line: gets the lines of its output.

        Raises:
            OSError: the system starts no process.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                child = cls(_spawn([*command, str(theirs.fileno())], theirs), receive)
        except BaseException:
            ours.close()
            raise
        try:
            await child._connect(ours, settings, on_line)
        except BaseException:
            child._abandon()
            ours.close()
            raise
        return child

    async def _connect(self, ours: socket.socket, settings: EngineSettings, on_line: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        pipe = cast("IO[bytes]", self._process.stdout)
        self._output_transport, self._output = await loop.connect_read_pipe(lambda: LastLines(on_line), pipe)
        await loop.create_unix_connection(lambda: self._channel, sock=ours)
        self._channel.send(settings)

    def _abandon(self) -> None:
        """Undo a start that went wrong half-way."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
        if self._output_transport is not None:
            self._output_transport.close()
        elif self._process.stdout is not None:
            self._process.stdout.close()

    async def hello(self) -> Hello | None:
        """Wait until it has loaded its model; None if it ended before."""
        return await asyncio.shield(self._hello)

    def send(self, message: FrontMessage) -> None:
        """Send a message, without waiting.

        Raises:
            FrameTooLong: nothing of it was sent.
        """
        self._channel.send(message)

    def kill(self, why: str) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._why_killed = self._why_killed or why
            self._process.kill()

    async def stop(self, limit_seconds: float) -> None:
        """Ask it to end, and see to it that it does."""
        self._channel.send(Stop())
        try:
            await asyncio.wait_for(self._has_closed.wait(), limit_seconds)
        except TimeoutError:
            self.kill(f"it did not stop within {limit_seconds:g} s")
        await self.ended()

    async def has_closed(self) -> None:
        """Wait until it says nothing any more."""
        await self._has_closed.wait()

    async def ended(self) -> str:
        """Wait until it has ended and nothing of it is left; returns how it ended, in some words."""
        await self._has_closed.wait()
        await self._reap()
        if self._output is not None:
            with contextlib.suppress(TimeoutError):  # another process that it started may hold the pipe open
                await asyncio.wait_for(self._output.has_ended.wait(), _EXIT_SECONDS)
        if self._output_transport is not None:
            self._output_transport.close()
        return self._how_it_ended()

    @property
    def last_lines(self) -> list[str]:
        """What it wrote last, on standard output and error; none where it said itself why it ended."""
        return [] if self._last_words or self._output is None else list(self._output.lines)

    def _hear(self, message: EngineMessage) -> None:
        if isinstance(message, Failed):
            self._last_words = message.message
        elif not isinstance(message, Hello):
            self._receive(message)
        elif message.protocol != PROTOCOL_VERSION:
            self.kill(
                f"it speaks protocol {message.protocol} and this server {PROTOCOL_VERSION}; is it an older Lamella?"
            )
        elif not self._hello.done():
            self._hello.set_result(message)

    def _closed(self) -> None:
        self._has_closed.set()
        if not self._hello.done():
            self._hello.set_result(None)

    async def _reap(self) -> None:
        """Wait for the end of the process itself.  Polling is what every system and event loop can do."""
        kill_at = time.monotonic() + _EXIT_SECONDS
        pause = _FIRST_POLL_SECONDS
        while self._process.poll() is None:
            if time.monotonic() >= kill_at:
                self.kill("it closed its connection and did not end")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)

    def _how_it_ended(self) -> str:
        if self._last_words:
            return self._last_words
        if self._why_killed:
            return f"it was killed: {self._why_killed}"
        if self._channel.failure:
            return f"it was not understood: {self._channel.failure}"
        return _exit_in_words(self._process.returncode)


def _exit_in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal_name(-code)}"


def _spawn(command: Sequence[str], connection: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        pass_fds=(connection.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,  # Ctrl-C in a terminal is for the front alone
    )
