"""llama.cpp's log: silent unless asked for, kept for error messages, and readable where it is the only source.

llama.cpp has one log callback a process.  Ours keeps the last lines, so that a failed call can say what llama.cpp said,
and forwards to listeners while a ``listening`` block is open.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes as ct
from collections.abc import Iterator
from typing import Any

_WARN, _ERROR = 3, 4  # enum ggml_log_level
_errors: collections.deque[str] = collections.deque(maxlen=8)
_listeners: list[list[str]] = []
_keep_alive: list[object] = []  # the C library holds a pointer to the callback


def quiet_by_default(llama: Any) -> None:
    """Take over llama.cpp's log callback."""

    @llama.llama_log_callback  # type: ignore[untyped-decorator]
    def receive(level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        if level in (_WARN, _ERROR):
            _errors.append(line.strip())
        for listener in _listeners:
            listener.append(line)

    _keep_alive[:] = [receive]
    llama.llama_log_set(receive, ct.c_void_p(0))


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Collect every line that llama.cpp logs inside the block, of all levels."""
    lines: list[str] = []
    _listeners.append(lines)
    try:
        yield lines
    finally:
        _listeners.remove(lines)


def forget_complaints() -> None:
    """Drop what was logged so far, so that ``complaints`` speaks of the next call only."""
    _errors.clear()


def complaints() -> str:
    """The last warnings and errors, in one line, for an error message."""
    return "; ".join(line for line in _errors if line) or "llama.cpp gave no reason"
