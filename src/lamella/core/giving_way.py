"""Work beside the work that somebody waits for: it gives way on cores that both want."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

LESS_URGENT = 5
"""Steps of niceness, each of which leaves about 0.8 of a share.

Five leave a quarter of a contested core: a step of the model grows by a third while a variant is prepared, and
preparing takes twice as long as on equal terms."""


def give_way() -> None:
    """Let other threads go before the calling one from now on.

    Does nothing where the system has no priorities of threads.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + LESS_URGENT)


REST_FACTOR = 3
"""A quarter of the time is worked where somebody waits..."""
MOST_REST_SECONDS = 0.5
"""...and no more rest than this is taken in all: steps that work of seconds falls in are long, and it is waited for."""


class Rests:
    """Rests between the pieces of background work, for as long as there are others to give way to.

    Priorities alone do not spread it: a thread that has slept gets its first milliseconds at once, and what it copies
    takes memory bandwidth from other cores too.  A piece is to be short beside what others do in one go.

        rests = Rests(lambda: others_compute)
        for piece in work:
            with rests.after():
                do(piece)
    """

    def __init__(
        self,
        are_due: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """For one piece of work after another.

        Args:
            are_due: whether there is anybody to give way to; asked after each piece.
        """
        self._are_due, self._clock, self._sleep = are_due, clock, sleep
        self._left_seconds = MOST_REST_SECONDS

    @contextlib.contextmanager
    def after(self) -> Iterator[None]:
        """Rest after the work of this block, in proportion to its time; not where it fails."""
        began = self._clock()
        yield
        seconds = min(REST_FACTOR * (self._clock() - began), self._left_seconds)
        if seconds > 0 and self._are_due():
            self._left_seconds -= seconds
            self._sleep(seconds)
