"""The web front keeps off the core on which the engine's loop runs.

The engine tells the front of each token through a local socket, and Linux wakes the reader of one on the writer's core,
in the belief that the writer will sleep next.  The engine does not: it prepares the next step, while the model's other
threads spin and wait for it.  So the front must run beside them, where it takes time from nobody (docs/log.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import psutil

Cores = frozenset[int]


def beside(usable: Cores, busy: int | None) -> Cores:
    """The cores for the front: all that it may use but a busy one, unless nothing were left."""
    return usable - {busy} or usable


class Aside:
    """Narrows the cores of one thread, and gives them back.  All methods belong to that thread."""

    def __init__(
        self,
        *,
        cores: Callable[[], Cores | None] | None = None,
        use: Callable[[Cores], object] | None = None,
        core_of: Callable[[int], int | None] | None = None,
    ) -> None:
        """Change nothing yet.

        Args:
            cores: those that this thread may use now; None where the system does not say.
            use: sets them.
            core_of: of a process's main thread, by its number; None where the system does not say.
        """
        self._cores, self._use, self._core_of = cores or _own_cores, use or _use_cores, core_of or _core_of
        self._usable: Cores | None = None
        self._kept_to: Cores | None = None

    def keep_off(self, pid: int) -> None:
        """Leave the core on which a process's main thread runs now.  Threads move: to be called now and then."""
        now = self._cores()
        if now is None:
            return
        if self._usable is None or now != self._kept_to:  # at first, or somebody else has changed them
            self._usable = now
        self._kept_to = beside(self._usable, self._core_of(pid))
        if self._kept_to != now:
            self._use(self._kept_to)

    def lift(self) -> None:
        """Use all cores again, as before a process is started: it would inherit the narrowed ones."""
        if self._usable is not None and self._cores() == self._kept_to:
            self._use(self._usable)
        self._usable = self._kept_to = None


def _own_cores() -> Cores | None:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _use_cores(cores: Cores) -> None:
    with contextlib.suppress(OSError):  # a container may take cores away in between
        os.sched_setaffinity(0, cores)


def _core_of(pid: int) -> int | None:
    with contextlib.suppress(psutil.Error, AttributeError):  # it has ended; the system does not say
        return int(psutil.Process(pid).cpu_num())
    return None
