"""The store's lock: ``flock(2)`` on the file ``lock``, held for moments (docs/store-format.md, "Locks").

Shared while a shard is added to a lease and looked up or put in place, and while a variant comes or goes; exclusive
while ``gc`` finds out what is needed and deletes the rest.  The kernel releases a lock with the process that holds it,
so no lock is ever stale.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lamella.core.errors import StoreBusy
from lamella.store.files import storage_errors
from lamella.store.layout import Layout

LONGEST_WAIT_S = 10.0
"""For those who hold the lock shared: they let go after moments, save loaders of a store that takes no leases."""

RETRY_S = 0.002
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def shared_lock(layout: Layout) -> Iterator[None]:
    """Keep ``gc`` out while the block runs.  Waits for a running one, which takes moments.

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
def exclusive_lock(layout: Layout, longest_wait_s: float = LONGEST_WAIT_S) -> Iterator[None]:
    """Keep everybody else out while the block runs.

    Raises:
        StoreBusy: somebody held the store for longer than ``longest_wait_s``.
        StorageFailed: the store cannot be written.
    """
    with storage_errors(layout.lock, "lock"):
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with storage_errors(layout.lock, "lock"):
            _lock_alone(fd, layout.root, longest_wait_s)
        yield
    finally:
        os.close(fd)


def _lock_alone(fd: int, root: Path, longest_wait_s: float) -> None:
    give_up = time.monotonic() + longest_wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise StoreBusy(
                    f"{root} is in use: for {longest_wait_s:g} s somebody has been reading it who could not write a "
                    "lease there (no permission, or a full disk); try again when that is done"
                ) from None
        time.sleep(RETRY_S)


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
