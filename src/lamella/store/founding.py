"""``store.json``: which model a store is of, and where a new store may be made.

identity = read_identity(path.read_bytes(), path)
found_store(Layout(folder), identity)
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec

from lamella.core.errors import StoreFormatError
from lamella.core.foreign import UNREADABLE
from lamella.core.model import ModelIdentity
from lamella.store import locks
from lamella.store.documents import read_document, write_document
from lamella.store.files import make_folder, storage_errors, write_atomically
from lamella.store.layout import STORE_FORMAT, Layout

_OWN_NAMES = {"lock", "incoming"}  # what another process that creates the same store may have made already


def read_identity(data: bytes, source: Path | str) -> ModelIdentity:
    """The model that a ``store.json`` names.

    Args:
        source: where it is from, for errors.

    Raises:
        StoreFormatError: no such document, or one of a newer format.
    """
    document = read_document(data, STORE_FORMAT, source)
    try:
        return msgspec.convert(document.get("model"), ModelIdentity)
    except UNREADABLE as error:
        raise StoreFormatError(f"{source}: {error}") from None


def store_document(identity: ModelIdentity) -> bytes:
    """``store.json`` of a store for that model."""
    return write_document(STORE_FORMAT, {"model": asdict(identity)})


def check_place_for_store(path: Path) -> None:
    """Refuse a place where no store can be made; what does not exist yet is a good one.

    Raises:
        StoreFormatError: a file, or a folder with other things in it.
    """
    layout = Layout(path)
    with storage_errors(path, "read"):
        try:
            names = {entry.name for entry in path.iterdir()}
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise StoreFormatError(f"{path} is a file; a store is a folder") from None
    if names - _OWN_NAMES and not layout.document.exists():
        raise StoreFormatError(f"{path} is no store and not empty: {', '.join(sorted(names)[:3])}")


def found_store(layout: Layout, identity: ModelIdentity) -> None:
    """Make a store where none is; of two processes that do so at once, one does.

    Raises:
        StoreFormatError: a file, or a folder with other things in it.
        StorageFailed: the file system refused.
    """
    check_place_for_store(layout.root)
    with storage_errors(layout.root, "create"):
        make_folder(layout.root)
    with locks.exclusive_lock(layout):  # two creators: the second finds the first one's document
        if not layout.document.exists():
            write_atomically(layout.incoming, layout.document, store_document(identity))
