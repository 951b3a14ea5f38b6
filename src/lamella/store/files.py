"""Writing that is whole or not there at all, and the file system's refusals in words.

    with IncomingFile(store / "incoming") as file:
        file.write(b"...")
        file.commit(store / "shards" / "ab" / f"{file.sha256}.gguf")

A file is written under ``incoming/``, flushed, made read-only and renamed.  While it is written its writer holds a
``flock`` on it: that is how ``gc`` tells a living owner's file from rubbish.  A collector removes a file only while it
holds that lock itself, and an owner that got the lock looks whether its file is still there; so neither takes the
other by surprise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lamella.core.closing import Closing
from lamella.core.errors import InvalidRequest, StorageFailed
from lamella.core.input_files import check_file
from lamella.core.units import format_bytes

FILE_MODE = 0o444
PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def storage_errors(path: Path, doing: str, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn ``OSError`` into ``StorageFailed`` with the facts.

    Args:
        path: named in the error.
        doing: for example ``write``: "cannot write PATH: No space left on device".
        needed_bytes: what the file needs in all, for "needs 3.1 MiB, 12.0 KiB are free".
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += _space(path, needed_bytes)
        raise StorageFailed(f"cannot {doing} {path}: {reason}") from error


def _space(path: Path, needed_bytes: int | None) -> str:
    free = f"{format_bytes(free_bytes(path))} are free"
    return f" ({free})" if needed_bytes is None else f" (needs {format_bytes(needed_bytes)}, {free})"


def free_bytes(path: Path) -> int:
    """What an ordinary user may still write on the file system of ``path`` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


class OwnedFile(Closing):
    """A file that this process writes, owned until it has its place; hashed on the way, so nothing is read twice.

    Attributes:
        path: where it grows.
        n_bytes: how much is there.
    """

    def __init__(self, fd: int, path: Path, needed_bytes: int | None = None) -> None:
        """Take over the open descriptor; ``needed_bytes`` is for what a full disk is told."""
        self._fd, self.path = fd, path
        self.n_bytes = 0
        self._needed_bytes = needed_bytes
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of everything that is there, from the first byte on."""
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Append.

        Raises:
            StorageFailed: the file system refused.
        """
        left = memoryview(data)
        with storage_errors(self.path, "write", self._needed_bytes):
            while left:
                n = os.write(self._fd, left)
                self._digest.update(left[:n])
                self.n_bytes += n
                left = left[n:]

    def flush(self) -> None:
        """Have everything on the disk; takes as long as the disk does."""
        with storage_errors(self.path, "write", self._needed_bytes):
            os.fsync(self._fd)

    def place(self, target: Path) -> None:
        """Make read-only, give the file its place (replacing what stood there), let go of it.

        After it the file is there for everybody; its folder's entry is not flushed.
        """
        with storage_errors(target, "write", self._needed_bytes):
            put_in_place(self._fd, self.path, target)
        self._let_go()

    def discard(self) -> None:
        """Remove the file unless it has its place; may be called again."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            self._let_go()

    def _let_go(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class IncomingFile(OwnedFile):
    """A file that is whole or not there at all: the end of a ``with`` block removes what has no place."""

    def __init__(self, incoming: Path, needed_bytes: int | None = None) -> None:
        """Begin one under a name of its own.

        Raises:
            StorageFailed: the file system refused.
        """
        path = incoming / uuid.uuid4().hex
        with storage_errors(path, "write", needed_bytes):
            incoming.mkdir(exist_ok=True)
            fd = create_owned(path)
        super().__init__(fd, path, needed_bytes)

    def commit(self, target: Path, *, durable: bool = True) -> None:
        """Flush to the disk and ``place``, with the folder's entry flushed too; not ``durable``: only ``place``."""
        if durable:
            self.flush()
        self.place(target)
        if durable:
            sync_folder(target.parent)

    def close(self) -> None:
        """``discard``."""
        self.discard()


def put_in_place(fd: int, path: Path, target: Path) -> None:
    """Make the open file at ``path`` read-only and rename it to ``target``, replacing what stood there."""
    os.fchmod(fd, FILE_MODE)
    make_folder(target.parent)
    path.rename(target)


@contextlib.contextmanager
def incoming_folder(incoming: Path) -> Iterator[Path]:
    """A folder under ``incoming/``, locked as ours; what is left of it at the end of the block is removed."""
    folder = incoming / uuid.uuid4().hex
    with storage_errors(folder, "write"):
        incoming.mkdir(exist_ok=True)
        fd = _owned(folder, _make_and_open)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def pieces(path: Path) -> Iterator[memoryview]:
    """The file's bytes in order, a mebibyte at a time; each piece is overwritten by the next.

    Raises:
        StorageFailed: it cannot be read.
    """
    buffer = bytearray(PIECE_BYTES)
    view = memoryview(buffer)
    with storage_errors(path, "read"):
        check_file(path)
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                yield view[:n]


@contextlib.contextmanager
def new_file(target: Path, needed_bytes: int, *, replace: bool) -> Iterator[BinaryIO]:
    """A file outside of any store: ``target`` holds all that the block wrote, or what it held before.

    It grows under a hidden name in the same folder; whatever ends the block early, Ctrl-C included, removes that.

    Args:
        needed_bytes: size of the whole file; a disk with less room is refused before anything is written.
        replace: whether a file of that name may be replaced.

    Raises:
        InvalidRequest: ``target`` is a folder or a device, or is there and may not be replaced.
        StorageFailed: no room, or the file system refused.
    """
    temporary = _temporary(target)
    with storage_errors(target, "write", needed_bytes):
        _refuse_existing(target, replace)
        if free_bytes(target.parent) < needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _refuse_existing(target, replace)  # it may have come meanwhile
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def check_new_file(target: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed for it; one that is there may be replaced.

    Raises:
        InvalidRequest: ``target`` is a folder or a device.
        StorageFailed: the file system refuses a new file beside it.
    """
    temporary = _temporary(target)
    with storage_errors(target, "write"):
        _refuse_existing(target, replace=True)
        temporary.touch(exist_ok=False)
        temporary.unlink()


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")


def _refuse_existing(target: Path, replace: bool) -> None:
    if target.is_dir():
        raise InvalidRequest(f"{target} is a folder; name a file")
    if target.exists() and not target.is_file():  # a file would take the place of /dev/null, where that is allowed
        raise InvalidRequest(f"{target} is no file; name one")
    if not replace and os.path.lexists(target):
        raise InvalidRequest(f"{target} exists already; choose another name, or replace it with --force")


def write_atomically(incoming: Path, target: Path, data: bytes, *, durable: bool = True) -> None:
    """``target`` holds ``data`` when this returns, or what it held before if this raises.

    Args:
        durable: survive a power cut too; without it the file may then be empty or gone.

    Raises:
        StorageFailed: the file system refused.
    """
    with IncomingFile(incoming, len(data)) as file:
        file.write(data)
        file.commit(target, durable=durable)


def make_folder(folder: Path) -> None:
    """Create the folder and its parents so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Have a file that somebody else wrote on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries; file systems that cannot flush a folder need not."""
    with contextlib.suppress(OSError):
        sync_file(folder)


def create_owned(path: Path, mode: int = 0o600) -> int:
    """Create a file that is this process's until the returned descriptor is closed."""
    return _owned(path, lambda new: os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))


def take_over(path: Path) -> int | None:
    """Make a file this process's, creating it if need be; None if it has a living owner.  Links are not followed."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if is_at(fd, path):
            return fd
        os.close(fd)  # its owner removed it between opening and locking


def _owned(path: Path, create: Callable[[Path], int]) -> int:
    """Create and lock until no collector comes in between."""
    while True:
        fd = create(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        if is_at(fd, path):
            return fd
        os.close(fd)


def _make_and_open(folder: Path) -> int:
    while True:
        folder.mkdir()
        with contextlib.suppress(FileNotFoundError):  # a collector was faster
            return os.open(folder, os.O_RDONLY)


def is_at(fd: int, path: Path) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def has_living_owner(path: Path) -> bool:
    """Whether a process holds the ``flock`` of a file or folder; those who ask do not see each other.

    What this user may not open counts as owned: it is another's to say.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def remove_dead(path: Path) -> int | None:
    """Remove a file or folder that no living process owns; its bytes, or None if it has an owner or is gone.

    What this user may not open is left alone.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return remove_tree(path) if is_at(fd, path) else None
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def take_away(folder: Path, incoming: Path) -> None:
    """Remove a folder: at once for everybody, and what a crash leaves of it is rubbish in ``incoming/``.

    Raises:
        FileNotFoundError: it is gone, perhaps by somebody else's hand.
    """
    incoming.mkdir(exist_ok=True)
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        rubbish = incoming / uuid.uuid4().hex
        folder.rename(rubbish)
        sync_folder(folder.parent)
        shutil.rmtree(rubbish)
    finally:
        os.close(fd)


def stored_bytes(path: Path) -> int:
    """Of the files at or under ``path``, links not followed; what is removed meanwhile counts nothing."""
    files = [path]
    if path.is_dir() and not path.is_symlink():
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            found = file.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def remove_tree(path: Path) -> int:
    """Remove a file or folder; returns the bytes of the files that went."""
    n_bytes = stored_bytes(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return n_bytes
