"""The memory limit of this process's control group, versions 1 and 2.

Every group from the process's own up to the root may have a limit, and each counts for all below it, so the tightest
one decides.  Page cache that is charged to a group is given back under pressure and counts as available; without that a
model file that was just read would look like used memory.

Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the Linux kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # version 1 has no word for "none" and shows a number near 2^63


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The limit that binds.

    Attributes:
        group: folder of the group that sets it.
        limit_bytes: the smallest limit on the way to the root, which is the total for this process.
        available_bytes: what may still be allocated in the tightest group.
    """

    group: str
    limit_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """One group on the way from this process to the root.

    Attributes:
        group: its folder.
        limit_bytes: what it may use; None without a limit.
        used_bytes: what it uses, page cache included.
        cache_bytes: of that, page cache, which the kernel gives back under pressure.
        pressure_file: where version 2 tells how long its processes waited for memory; may not exist.
    """

    group: str
    limit_bytes: int | None
    used_bytes: int
    cache_bytes: int
    pressure_file: Path


@dataclass(frozen=True, slots=True)
class _Files:
    """File names of a version of control groups."""

    mount: str
    limit: str
    usage: str
    cache: tuple[str, ...]


_V2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V2_HYBRID = _Files("sys/fs/cgroup/unified", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = _Files(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def memory_limit(root: Path = Path("/"), groups: Sequence[GroupMemory] | None = None) -> MemoryLimit | None:
    """The limit that binds this process, or None where there is none.

    Args:
        root: the file system to look in, so that tests can use recorded trees.
        groups: what ``memory_groups`` said just now; None to look.
    """
    limits = [
        MemoryLimit(found.group, found.limit_bytes, _available(found, found.limit_bytes))
        for found in (memory_groups(root) if groups is None else groups)
        if found.limit_bytes is not None
    ]
    if not limits:
        return None
    tightest = min(limits, key=lambda limit: limit.available_bytes)
    return MemoryLimit(tightest.group, min(limit.limit_bytes for limit in limits), tightest.available_bytes)


def memory_groups(root: Path = Path("/")) -> tuple[GroupMemory, ...]:
    """The groups of this process whose memory is counted, from its own up to the root.

    Inside a container the path may name a folder that only the host sees; the folders that exist are used.
    """
    return tuple(
        found
        for files, group in _memberships(root)
        for ancestor in (group, *group.parents)
        if (found := _group(root, files, ancestor)) is not None
    )


def _memberships(root: Path) -> Iterator[tuple[_Files, PurePosixPath]]:
    """The groups of this process that may limit memory, from ``/proc/self/cgroup``: ``id:controllers:path``."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            yield _V1, PurePosixPath(path)
        elif number == "0" and not controllers:
            yield _V2, PurePosixPath(path)
            yield _V2_HYBRID, PurePosixPath(path)


def _group(root: Path, files: _Files, group: PurePosixPath) -> GroupMemory | None:
    """One group, if its folder is there and counts memory."""
    folder = root / files.mount / str(group).lstrip("/")
    limit, usage = _number(folder / files.limit), _number(folder / files.usage)
    if usage is None:
        return None
    return GroupMemory(
        group="/" + str(folder.relative_to(root)),
        limit_bytes=None if limit is None or limit >= _UNLIMITED else limit,
        used_bytes=usage,
        cache_bytes=_page_cache(folder, files),
        pressure_file=folder / "memory.pressure",
    )


def _available(group: GroupMemory, limit_bytes: int) -> int:
    return min(limit_bytes, max(0, limit_bytes - group.used_bytes + group.cache_bytes))


def _page_cache(folder: Path, files: _Files) -> int:
    pairs = (line.split() for line in _read(folder / "memory.stat").splitlines())
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in files.cache)


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None  # "max" means no limit


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
