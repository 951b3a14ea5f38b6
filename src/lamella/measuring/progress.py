"""How far a measurement has come.  Inner functions count; ``measure_model`` says what is counted."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being done); each step has its own total.  May raise, to stop."""

Count = Callable[[int], None]
"""Called with how much is done so far."""


def ignore(_done: int) -> None:
    """Count nothing."""


def shifted(count: Count, by: int) -> Count:
    """For a part that starts when ``by`` are done."""
    return lambda done: count(by + done)


def named(progress: Progress, total: int, what: str) -> Count:
    """For a step of ``total``."""
    return lambda done: progress(done, total, what)
