"""A control group that limits memory, of version 1 or 2, and what it counts; for benchmarks and tests."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

MOUNT = Path("/sys/fs/cgroup")
LEAVING_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Memory of a group now, in bytes.

    Attributes:
        used: that the limit is compared with.
        private: of its processes; the kernel cannot take it back without swap.
        cache: pages of files.
    """

    used: int
    private: int
    cache: int


class MemoryGroup:
    """One group.

    Attributes:
        folder: where the kernel shows it.
    """

    def __init__(self, folder: Path, *, is_version_2: bool) -> None:
        self.folder, self._is_version_2 = folder, is_version_2

    def limit(self, n_bytes: int) -> None:
        """Let its processes take no more together."""
        self._file("memory.max", "memory.limit_in_bytes").write_text(str(n_bytes))

    def counts(self) -> Counts:
        """What is taken now."""
        stat = self._numbers("memory.stat")
        used = int(self._file("memory.current", "memory.usage_in_bytes").read_text())
        if self._is_version_2:
            return Counts(used, stat["anon"], stat["file"])
        return Counts(used, stat["total_rss"], stat["total_cache"])

    @property
    def n_killed(self) -> int:
        """Processes that the kernel killed because the limit was reached."""
        return self._numbers("memory.events" if self._is_version_2 else "memory.oom_control")["oom_kill"]

    def inside(self, command: Sequence[object]) -> list[str]:
        """The command, to be run in this group."""
        into = f'echo $$ > "{self.folder / "cgroup.procs"}"; exec "$@"'
        return ["sh", "-c", into, "sh", *map(str, command)]

    def kill_what_is_left(self) -> None:
        """End processes that outlived what started them."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def _file(self, version_2: str, version_1: str) -> Path:
        return self.folder / (version_2 if self._is_version_2 else version_1)

    def _numbers(self, file: str) -> dict[str, int]:
        pairs = (line.split() for line in (self.folder / file).read_text().splitlines())
        return {name: int(value) for name, value in pairs}


def missing() -> str | None:
    """Why there can be no such group here; None where there can."""
    try:
        with memory_group():
            return None
    except OSError as error:
        return f"no right to make a control group that limits memory: {error.strerror or error}"


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A group without a limit yet; gone at the end, with all that still runs in it.

    Raises:
        OSError: there is no right to make one, or nothing counts memory by groups.
    """
    is_version_2 = (MOUNT / "cgroup.controllers").is_file()
    folder = (MOUNT if is_version_2 else MOUNT / "memory") / f"lamella-{uuid4().hex[:8]}"
    folder.mkdir()
    try:
        group = MemoryGroup(folder, is_version_2=is_version_2)
        group.counts()  # version 2 has these files only where the controller is handed down
        yield group
    finally:
        MemoryGroup(folder, is_version_2=is_version_2).kill_what_is_left()
        _remove(folder)


def _remove(folder: Path) -> None:
    """Its last process may still be on its way out."""
    end = time.monotonic() + LEAVING_SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
