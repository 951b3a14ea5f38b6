"""Who may work in a store at the same time: ``flock(2)`` on the file ``lock`` (docs/store-format.md).

Builders and loaders hold it shared; ``gc`` and ``rm`` exclusive, and are refused at once when they cannot.  The kernel
releases a lock with the process that holds it, so no lock is ever stale.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lamella.core.errors import StoreBusy
from lamella.store.files import storage_errors
from lamella.store.layout import Layout

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def shared_lock(layout: Layout) -> Iterator[None]:
    """Keep shards from being removed while the block runs.  Waits for a running ``gc``, which takes moments.

    A store that may only be read needs no writable lock file, and none at all if it has none: whoever can
    remove shards there can also create the file.
    """
    with storage_errors(layout.lock, "lock"):
        fd = _open_to_share(layout.lock)
    if fd is None:
        yield
        return
    try:
        with storage_errors(layout.lock, "lock"):
            fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def exclusive_lock(layout: Layout, *, wait: bool = False) -> Iterator[None]:
    """Keep everybody else out while the block runs.

    Raises:
        StoreBusy: a builder or loader holds the store, and ``wait`` is not asked for.
        StorageFailed: the store cannot be written.
    """
    with storage_errors(layout.lock, "lock"):
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with storage_errors(layout.lock, "lock"):
            _lock_alone(fd, layout.root, wait)
        yield
    finally:
        os.close(fd)


def _lock_alone(fd: int, root: Path, wait: bool) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise StoreBusy(
            f"{root} is in use: a variant is being built or loaded there; try again when that is done"
        ) from None


def _open_to_share(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
