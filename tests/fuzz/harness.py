"""What is fuzzed, and what must hold: ``try_one`` raises where a parser did anything but read or refuse."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.errors import LamellaError
from tests.fuzz.mutating import Form
from tests.fuzz.words import words_of

MOST_SECONDS = 5.0
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = {f"os.{what}" for what in ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "chmod", "truncate")}
_LEAVING = {"socket.connect", "socket.bind", "socket.sendto", "subprocess.Popen", "os.system", "os.exec", "os.fork"}


class Escaped(BaseException):
    """The parser wrote outside its folder, connected somewhere, or started a program.  No ``except`` swallows it."""


class Hung(BaseException):
    """One input took more than ``MOST_SECONDS`` of processor time; a machine that stands still is no fault of it."""


@dataclass(frozen=True, slots=True)
class Harness:
    """A parser of foreign bytes.

    Attributes:
        name: for ``scripts/fuzz --only``.
        modules: of ``lamella``, whose lines count as its coverage.
        seeds: inputs that it reads without complaint, to start from; made anew at each call, always the same.
        read: gives it some bytes; may use the folder, which is empty.
        form: how its inputs are taken apart and put together, for mutations that keep their shape; None for bytes.
        spoken: further modules whose words occur in its inputs.
    """

    name: str
    modules: tuple[str, ...]
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[bytes, Path], object]
    form: Form | None = None
    spoken: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """That mutations put in."""
        return words_of((*self.modules, *self.spoken))


def try_one(harness: Harness, data: bytes, folder: Path) -> bool:
    """Whether the parser took the bytes.

    Raises:
        Escaped, Hung: see there.
        Exception: anything that is no ``LamellaError``.
    """
    with _watched(folder), _in_time():
        try:
            harness.read(data, folder)
        except LamellaError as error:
            str(error).encode()  # a message that nobody can print is a fault of its own
            return False
    return True


_watching: list[tuple[str, int]] = []
"""Folder and thread of the input that runs now."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Python's own report of what is about to happen (PEP 578).  It cannot be taken off again, so it looks first."""
    if not _watching or threading.get_ident() != _watching[-1][1]:
        return
    if event in _LEAVING:
        raise Escaped(f"{event} {arguments!r}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        _check_inside(event, arguments[0])
    elif event in _CHANGING:
        for path in arguments[:2]:
            _check_inside(event, path)


def _check_inside(event: str, path: object) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a descriptor, which was checked when it was opened
    folder = _watching[-1][0]
    found = os.path.realpath(os.fsdecode(path))
    if found != os.devnull and os.path.commonpath([folder, found]) != folder:
        raise Escaped(f"{event} {found}, outside {folder}")


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[None]:
    _install()
    _watching.append((os.path.realpath(folder), threading.get_ident()))
    try:
        yield
    finally:
        _watching.pop()


def _install(_done: list[bool] = []) -> None:  # noqa: B006 (once a process)
    if not _done:
        _done.append(True)
        sys.addaudithook(_audit)


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def hung(_signal: int, _frame: object) -> None:
        raise Hung(f"more than {MOST_SECONDS:g} s")

    before = signal.signal(signal.SIGPROF, hung)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
