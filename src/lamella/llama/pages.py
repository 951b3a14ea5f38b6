"""Pages of mapped files: read in ahead, given back, counted."""

from __future__ import annotations

import contextlib
import ctypes as ct
import functools
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14: fault pages in, without touching them one by one
HUGE_PAGES = 14
"""MADV_HUGEPAGE, Linux: fewer entries in the translation cache for weights that are read for every token."""
_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 128 * 1024  # M_MMAP_THRESHOLD of mallopt(3), and glibc's own first value


@functools.cache  # each opening makes a new class, 10 us
def _c_library() -> ct.CDLL:
    return ct.CDLL(None)


def advise(start: int, n_bytes: int, advice: int) -> bool:
    """``madvise`` on the whole pages inside a range; whether the kernel took the advice."""
    page = mmap.PAGESIZE
    first, last = -(-start // page) * page, (start + n_bytes) // page * page
    return last <= first or _c_library().madvise(ct.c_void_p(first), ct.c_size_t(last - first), advice) == 0


def new_memory(n_bytes: int) -> NDArray[np.uint8]:
    """Memory of zeros, which goes back to the system when the last view of it is gone.

    Its first use costs most of a copy into it: what is not written to costs nothing.  numpy's own large arrays ask for
    huge pages, which took half as long again (docs/log.md).
    """
    return np.frombuffer(mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def unmap(start: int, n_bytes: int) -> None:
    """Let go of the whole pages inside a range of a file mapping; reading them again is only slow."""
    advise(start, n_bytes, mmap.MADV_DONTNEED)


def drop_from_cache(path: Path, start: int = 0, n_bytes: int = 0) -> None:
    """Give a part of a file back to the kernel, but for the pages that some process has mapped.

    Does nothing where the system cannot be told so, or the file is gone.

    Args:
        n_bytes: 0 for all that follows ``start``.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), start, n_bytes, os.POSIX_FADV_DONTNEED)


def give_back_what_is_freed() -> None:
    """Have large blocks that are freed leave the process at once, from now on.

    glibc keeps them for itself once some were freed (its ``mmap`` threshold grows to 32 MiB), so that copies of weights
    that are gone would still count.  Does nothing with other C libraries.
    """
    set_option = getattr(_c_library(), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGE_BLOCK)


def trim_heap() -> None:
    """Give the heap's free pages back, for blocks that were taken before ``give_back_what_is_freed``.

    Does nothing with other C libraries than glibc.
    """
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes(path: Path) -> int:
    """How much of a file the page cache holds (``mincore``); for reports and tests."""
    size = path.stat().st_size
    if size == 0:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        view = np.frombuffer(mapping, np.uint8)
        vector = (ct.c_ubyte * pages)()
        code = _c_library().mincore(ct.c_void_p(view.ctypes.data), ct.c_size_t(size), vector)
        del view
    if code != 0:
        raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))
    return sum(flag & 1 for flag in vector) * mmap.PAGESIZE
