"""What shards were made from: where the model files stand, and the importance matrices that rounding used.

    store.sources.note(SourceNote(identity, files, tensors))
    store.sources.find(weights)                  # its files may have moved or changed meanwhile
    store.sources.importance_path(used)          # used: the hash in a plan's settings

With these and a variant's plan every shard can be made again (``lamella.quantize.rebuild``).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from lamella.core.errors import InvalidRequest, StoreFormatError
from lamella.core.model import ModelIdentity
from lamella.store.documents import read_note, write_document
from lamella.store.files import remove_tree, storage_errors, write_atomically
from lamella.store.layout import Layout

SOURCE_FORMAT = "lamella.source"

IMPORTANCE_SETTING = "importance_matrix"
"""Setting of a variant's plan: SHA-256 of the importance values that its rounding used."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it was when it was noted.

    Attributes:
        path: absolute.
        mtime_ns: when it was changed last, in nanoseconds since 1970.
    """

    path: str
    n_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Look at a file.

        Raises:
            InvalidRequest: its path is not UTF-8, and JSON holds nothing else.
            StorageFailed: it cannot be looked at.
        """
        name = str(path.absolute())
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                f"a store cannot note where its model stands: {os.fsencode(name)!r} is not UTF-8; rename it"
            ) from None
        with storage_errors(path, "read"):
            found = path.stat()
        return cls(name, found.st_size, found.st_mtime_ns)

    def change(self) -> str:
        """What is not as it was noted: "" if nothing, else a clause for a message."""
        try:
            found = Path(self.path).stat()
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        if found.st_size != self.n_bytes:
            return f"{self.path} has {found.st_size} bytes; it had {self.n_bytes} when it was noted"
        return "" if found.st_mtime_ns == self.mtime_ns else f"{self.path} was written to since it was noted"


@dataclass(frozen=True, slots=True)
class SourceNote:
    """A model that shards were made from.

    Attributes:
        files: in split order.
        tensors: (name, ggml type) of each tensor, in file order: what the identity of the weights is taken over.
    """

    model: ModelIdentity
    files: tuple[SourceFile, ...]
    tensors: tuple[tuple[str, str], ...]

    def change(self) -> str:
        """What of its files is not as it was noted; "" if all is."""
        return next((change for file in self.files if (change := file.change())), "")


class Sources:
    """The notes of a store.  Holds no file open."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def note(self, source: SourceNote) -> None:
        """Remember where a model's files stand, in place of what was noted of the same weights.

        Raises:
            StorageFailed: the file system refused.
        """
        path = self._layout.source(source.model.weights)
        write_atomically(self._layout.incoming, path, write_document(SOURCE_FORMAT, asdict(source)))

    def find(self, weights: str) -> SourceNote | None:
        """What is noted of the model with these weights (``ModelIdentity.weights``).

        Raises:
            StoreFormatError: the note cannot be read; names it and the cure.
        """
        path, cure = self._layout.source(weights), f"lamella store repair {self._layout.root} --model FILE"
        found = read_note(path, SOURCE_FORMAT, SourceNote, cure)
        if found is not None and (found.model.weights != weights or not found.files):
            raise StoreFormatError(f"{path} is about other weights, or names no file; to mend it, run: {cure}")
        return found

    def unreadable(self) -> tuple[str, ...]:
        """Why notes cannot be read, each with its file and the cure."""
        reasons = []
        for weights, _ in self._layout.source_files():
            try:
                self.find(weights)
            except StoreFormatError as error:
                reasons.append(str(error))
        return tuple(reasons)

    def keep_importance(self, used: str, data: bytes) -> None:
        """Keep a matrix that a variant's rounding is about to use.

        Args:
            used: what the variant's plan calls it.
            data: the file, in llama.cpp's format.

        Raises:
            StorageFailed: the file system refused.
        """
        path = self._layout.importance(used)
        if not path.exists():
            write_atomically(self._layout.incoming, path, data)

    def importance_path(self, used: str) -> Path | None:
        """Where that matrix stands; None if it was not kept."""
        path = self._layout.importance(used)
        return path if path.exists() else None

    def forget_importance(self, needed: Collection[str]) -> int:
        """Remove the other matrices; returns the bytes that went."""
        with storage_errors(self._layout.root, "remove from"):
            return sum(remove_tree(path) for used, path in self._layout.importance_files() if used not in needed)
