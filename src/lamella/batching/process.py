"""The engine process: ``python -m lamella.batching.process FD``, where FD is its end of a socket to the front.

The first frame is ``EngineSettings``.  Then the model is loaded, ``Hello`` goes out, and three threads work: the main
one runs the loop, one receives, and one sends ``Status``, by which the front knows that the process lives.

The process has no life without its front: when the connection ends it ends, whatever it is doing.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Protocol, cast

from lamella.batching import frames
from lamella.batching.messages import (
    HEARTBEAT_SECONDS,
    EngineMessage,
    Failed,
    FrontMessage,
    Hello,
    Refused,
    Status,
    Stop,
)
from lamella.batching.settings import EngineSettings
from lamella.core.collector import keep_what_is_there
from lamella.core.errors import EngineFailed, LamellaError

Send = Callable[[EngineMessage], None]


class Loop(Protocol):
    """What this process runs: ``batching.loop.EngineLoop``, or a fake of the tests."""

    def hello(self) -> Hello:
        """What was loaded."""

    def receive(self, message: FrontMessage) -> None:
        """Take a message in; called by another thread than ``run``."""

    def run(self) -> None:
        """Work until ``Stop`` was received."""

    def status(self) -> Status:
        """Figures of now; called by another thread than ``run``, and never waits for a step."""

    def close(self) -> None:
        """Free what is owned."""


OpenLoop = Callable[[EngineSettings, Send], Loop]


class EngineProcess:
    """One loop between its threads."""

    def __init__(self, connection: frames.FrameSocket, open_loop: OpenLoop) -> None:
        self._connection, self._open_loop = connection, open_loop
        self._loop: Loop | None = None
        self._has_ended = threading.Event()

    def run(self) -> int:
        """Load, say hello, work until ``Stop``; returns the exit code."""
        try:
            settings = self._connection.receive_one(frames.settings_decoder())
            threading.Thread(target=self._guarded, args=(self._read,), daemon=True, name="reader").start()
            loop = self._open_loop(settings, self._send)
        except Exception as error:
            return self._fail(error)
        try:
            self._serve(loop)
        except Exception as error:
            return self._fail(error)
        finally:
            self._has_ended.set()
            loop.close()
        return 0

    def _serve(self, loop: Loop) -> None:
        self._loop = loop
        self._send(loop.hello())
        threading.Thread(target=self._guarded, args=(self._beat,), daemon=True, name="heartbeat").start()
        loop.run()

    def _read(self) -> None:
        for message in self._connection.receive(frames.front_decoder()):
            if self._loop is None:
                if isinstance(message, Stop):
                    leave(0)
                raise EngineFailed(f"a {type(message).__name__} came before the engine said Hello")
            self._take(self._loop, message)
        leave(0)  # the front is gone

    def _take(self, loop: Loop, message: FrontMessage) -> None:
        """Pass a message on.  A fault over one request costs that request, not the process."""
        try:
            loop.receive(message)
        except Exception as error:
            traceback.print_exc()
            if isinstance(message, Stop):
                raise
            self._send(Refused(id=message.id, why="failed", message=sentence(error)))

    def _beat(self) -> None:
        assert self._loop is not None
        while not self._has_ended.is_set():
            self._send(self._loop.status())
            self._has_ended.wait(HEARTBEAT_SECONDS)

    def _send(self, message: EngineMessage) -> None:
        try:
            self._connection.send(message)
        except frames.FrameTooLong as error:
            number = getattr(message, "id", None)
            if number is None:
                raise
            self._connection.send(Refused(id=number, why="failed", message=str(error)))
        except OSError:
            leave(0)  # the front is gone

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a thread; where it fails the process ends, since it would work on without ears or pulse."""
        try:
            work()
        except Exception as error:
            leave(self._fail(error))

    def _fail(self, error: Exception) -> int:
        if not isinstance(error, LamellaError):
            traceback.print_exception(error)
        self._send(Failed(message=sentence(error)))
        return error.exit_code if isinstance(error, LamellaError) else LamellaError.exit_code


def sentence(error: Exception) -> str:
    """What the front is told of an error; a ``LamellaError`` speaks for itself."""
    return str(error) if isinstance(error, LamellaError) else f"{type(error).__name__}: {error}"


def leave(code: int) -> None:
    """End the process at once, from any thread: llama.cpp's memory is the kernel's to free."""
    sys.stderr.flush()
    os._exit(code)


def main(descriptor: str, open_loop: OpenLoop) -> None:
    """Serve one connection and end the process.

    Args:
        descriptor: number of the inherited socket.
        open_loop: loads the model.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the front, which says Stop
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort shall end at once, and not start a debugger
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    leave(EngineProcess(frames.FrameSocket(connection), open_loop).run())


def open_engine(settings: EngineSettings, send: Send) -> Loop:
    """Load the model; only now is llama.cpp imported, so that the process can hear its front before."""
    module = importlib.import_module("lamella.batching.loop")
    loop = cast(Loop, module.EngineLoop.open(settings, send))
    keep_what_is_there()
    return loop


if __name__ == "__main__":
    main(sys.argv[1], open_engine)
