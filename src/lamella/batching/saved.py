"""The books of a KV cache that one engine leaves to the next, beside the cells that llama.cpp saves (``llama.saving``).

    folder/cells        what llama.cpp writes
    folder/slots        which sequence holds which tokens: msgpack, written last

Both processes are of one installation, and the folder is theirs alone; what does not fit the new context is not used,
and is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from lamella.batching.slots import Extent, Slot
from lamella.core.errors import EngineFailed
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import read_file
from lamella.store.files import storage_errors

CELLS, SLOTS = "cells", "slots"
FORMAT_VERSION = 1


class SavedSlot(msgspec.Struct, frozen=True):
    """A slot as it was, without its owner.

    Attributes:
        extents: number of a run of cells, and how many of its first ones.
    """

    id: int
    tokens: list[int]
    variants: list[str]
    extents: list[tuple[int, int]]


class SavedSlots(msgspec.Struct, frozen=True, tag_field="format", tag="lamella.slots"):
    """The slots that hold something, least recently used first."""

    version: int
    slots: list[SavedSlot]


def write_slots(folder: Path, slots: Sequence[Slot]) -> None:
    """Note what slots hold.

    Raises:
        StorageFailed: the disk does not take it.
    """
    used = sorted((slot for slot in slots if slot.tokens), key=lambda slot: slot.last_used)
    saved = [
        SavedSlot(s.id, s.tokens, sorted(s.variants), [(extent.run, extent.length) for extent in s.extents])
        for s in used
    ]
    path = folder / SLOTS
    with storage_errors(path, "write"):
        path.write_bytes(msgspec.msgpack.encode(SavedSlots(FORMAT_VERSION, saved)))


def read_slots(folder: Path, n_slots: int) -> list[Slot]:
    """What ``write_slots`` noted, least recently used first; nobody owns them.

    Args:
        n_slots: that there are now.

    Raises:
        StorageFailed: there is nothing to read.
        EngineFailed: it is something else, or of an engine with more slots.
    """
    path = folder / SLOTS
    with storage_errors(path, "read"):
        data = read_file(path)
    try:
        saved = msgspec.msgpack.decode(data, type=SavedSlots)
    except UNREADABLE as error:
        raise EngineFailed(f"{path} says nothing of slots: {error}") from None
    if saved.version != FORMAT_VERSION:
        raise EngineFailed(f"{path} has version {saved.version}; this engine reads version {FORMAT_VERSION}")
    if any(not 0 <= slot.id < n_slots for slot in saved.slots):
        raise EngineFailed(f"{path} is of an engine with more than the {n_slots} slots of this one")
    return [_slot(slot) for slot in saved.slots]


def _slot(saved: SavedSlot) -> Slot:
    extents = [Extent(run, length) for run, length in saved.extents]
    return Slot(saved.id, list(saved.tokens), variants=set(saved.variants), extents=extents)
