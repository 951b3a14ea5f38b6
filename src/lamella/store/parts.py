"""A shard that arrives from elsewhere, piece by piece, perhaps in several sittings.

    with PartFile(store / "incoming", shard.id) as part:
        for data in remote.fetch(shard.id, shard.n_bytes, part.n_bytes):
            part.write(data)
        if part.sha256 == shard.id:
            part.flush()
            lease.place(part, shard.id)

Unlike an ``IncomingFile`` it has a name to be found again by, ``incoming/HASH.part``, and it stays when its writer
goes: whoever opens it next hashes what is there and goes on behind it.  While somebody writes it, a ``flock`` says so;
one without is rubbish to ``gc``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lamella.store.files import PIECE_BYTES, OwnedFile, has_living_owner, remove_dead, storage_errors, take_over
from lamella.store.layout import check_sha256


class PartFile(OwnedFile):
    """The beginning of a shard; ``close`` leaves the bytes for later.

    A part that another process is writing is left to it: this one then begins under a second name.

    Attributes:
        resumed_bytes: how much was there when it was opened.
    """

    def __init__(self, incoming: Path, shard_id: str) -> None:
        """Open what is left of an earlier attempt, or begin.

        Raises:
            StoreFormatError: no SHA-256.
            StorageFailed: the file system refused.
        """
        check_sha256(shard_id, "shard id")
        with storage_errors(incoming, "write"):
            incoming.mkdir(parents=True, exist_ok=True)
            super().__init__(*_open_alone(incoming, shard_id))
        try:
            self._hash_what_is_there()
        except BaseException:
            self.close()
            raise
        self.resumed_bytes = self.n_bytes

    def restart(self) -> None:
        """Throw away what is there and begin anew."""
        with storage_errors(self.path, "write"):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._digest = hashlib.sha256()
        self.n_bytes = self.resumed_bytes = 0

    def close(self) -> None:
        """Leave what is there to whoever comes next; an empty file is removed."""
        if self.n_bytes == 0:
            self.discard()
        self._let_go()

    def _hash_what_is_there(self) -> None:
        with storage_errors(self.path, "read"):
            while data := os.read(self._fd, PIECE_BYTES):
                self._digest.update(data)
                self.n_bytes += len(data)


def _open_alone(incoming: Path, shard_id: str) -> tuple[int, Path]:
    """A part file that nobody else writes, and its path."""
    number = 0
    while True:
        path = incoming / (f"{shard_id}.{number}.part" if number else f"{shard_id}.part")
        fd = _take(path)
        if fd is not None:
            return fd, path
        number += 1  # a living writer's; take the next name


def _take(path: Path) -> int | None:
    """As ``take_over``; what a writer that died in ``place`` left read-only is removed first."""
    try:
        return take_over(path)
    except PermissionError:
        if has_living_owner(path):
            return None  # it is being given its place at this moment
        remove_dead(path)
        return take_over(path)
